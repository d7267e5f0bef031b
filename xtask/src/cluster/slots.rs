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
        let owner = layout.directory.display().to_string();
        let mut free = None;
        for number in 0..SLOTS {
            match fs::read_to_string(file(number)) {
                Ok(content) if content == owner => return Ok(Self(number)),
                Ok(content) if Path::new(&content).file_name() == layout.directory.file_name() => bail!(
                    "another cluster named {} runs on this machine, in {content}: choose another --name, or take that one down",
                    layout.name
                ),
                Ok(_) => {}
                Err(_) => free = free.or(Some(number)),
            }
        }
        let Some(number) = free else { bail!("{SLOTS} clusters run on this machine: take one down") };
        write(&file(number), owner)?;
        Ok(Self(number))
    }

    /// The cluster's slot, if it has one.
    pub fn of(layout: &Layout) -> Option<Self> {
        let owner = layout.directory.display().to_string();
        (0..SLOTS).find(|number| fs::read_to_string(file(*number)).is_ok_and(|content| content == owner)).map(Self)
    }

    /// Gives the slot back.
    pub fn release(self) -> Result<()> {
        let _lock = lock()?;
        let path = file(self.0);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}

fn file(number: u8) -> PathBuf {
    Path::new(FOLDER).join("slots").join(number.to_string())
}

fn lock() -> Result<File> {
    exclusive(&Path::new(FOLDER).join("lock"))
}

/// Holds a lock file until the returned file is dropped; waits for whoever holds it.
pub fn exclusive(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let file = File::create(path).with_context(|| format!("open {}", path.display()))?;
    if file.try_lock().is_err() {
        super::progress::note(&format!("waiting for another run, which holds {}", path.display()));
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
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
