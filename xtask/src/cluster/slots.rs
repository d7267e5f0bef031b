//! Slots: a small number for every cluster of this machine, from which its addresses towards the machine derive.
//!
//! Slots are kept in `/run`, as what they number: both end with the machine's uptime. A lock file orders those who take one.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::layout::Layout;
use super::run::write;

const FOLDER: &str = "/run/backlot";
/// A /24 of documentation addresses, cut into /30s.
const SLOTS: u8 = 64;

/// The number of a cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slot(u8);

impl Slot {
    /// The machine's address in the cluster's /30.
    pub fn machine(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, self.0 * 4 + 1)
    }

    /// The API server's address in the cluster's /30.
    pub fn api_server(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, self.0 * 4 + 2)
    }

    /// The machine's network device towards the cluster.
    pub fn device(self) -> String {
        format!("backlot{}", self.0)
    }

    /// The cluster's slot; a free one is taken when it has none.
    pub fn take(layout: &Layout) -> Result<Self> {
        let _lock = lock()?;
        check_name(layout)?;
        if let Some(slot) = Self::of(layout) {
            return Ok(slot);
        }
        let Some(number) = (0..SLOTS).find(|number| owner(*number).is_none()) else {
            bail!("{SLOTS} clusters run on this machine: take one down")
        };
        write(&file(number), layout.directory.display().to_string())?;
        Ok(Self(number))
    }

    /// The cluster's slot, if it has one.
    pub fn of(layout: &Layout) -> Option<Self> {
        (0..SLOTS).find(|number| owner(*number).is_some_and(|folder| folder == layout.directory)).map(Self)
    }

    /// Whether any cluster has a slot.
    pub fn any() -> bool {
        (0..SLOTS).any(|number| owner(number).is_some())
    }

    /// Gives the slot back.
    pub fn release(self) -> Result<()> {
        let _lock = lock()?;
        let path = file(self.0);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}

/// The slot of a cluster that must run.
pub fn running(layout: &Layout) -> Result<Slot> {
    match Slot::of(layout) {
        Some(slot) => Ok(slot),
        None => bail!("cluster {} does not run: start it with `cargo xtask cluster up --name {0}`", layout.name),
    }
}

/// Refuses to work on a cluster when one of the same name belongs to another cache: their names in the kernel would be the same.
pub fn check_name(layout: &Layout) -> Result<()> {
    let other = (0..SLOTS)
        .filter_map(owner)
        .find(|folder| folder.file_name() == layout.directory.file_name() && *folder != layout.directory);
    match other {
        Some(folder) => bail!(
            "another cluster named {} runs on this machine, in {}: choose another --name, or set BACKLOT_CACHE as that one has it",
            layout.name,
            folder.display()
        ),
        None => Ok(()),
    }
}

/// The folder of the cluster that has the slot.
fn owner(number: u8) -> Option<PathBuf> {
    fs::read_to_string(file(number)).ok().map(PathBuf::from)
}

fn file(number: u8) -> PathBuf {
    Path::new(FOLDER).join("slots").join(number.to_string())
}

fn lock() -> Result<File> {
    exclusive(&Path::new(FOLDER).join("lock"))
}

/// Holds a lock file until the returned file is dropped; waits for whoever holds it.
pub fn exclusive(path: &Path) -> Result<File> {
    let file = lock_file(path)?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// As [`exclusive`], for what may take long: says so when it has to wait.
pub fn exclusive_for_long(path: &Path) -> Result<File> {
    let file = lock_file(path)?;
    if file.try_lock().is_err() {
        super::progress::note(&format!("waiting for another run, which holds {}", path.display()));
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

fn lock_file(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    File::create(path).with_context(|| format!("open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_addresses_of_its_own_in_one_slash_30() {
        for number in 0..SLOTS {
            let slot = Slot(number);
            let [machine, server] = [slot.machine(), slot.api_server()].map(|address| address.octets()[3]);
            assert_eq!(machine / 4, server / 4);
            assert_eq!(machine / 4, number);
            assert!(slot.device().len() <= 15);
        }
    }
}
