//! Control groups: what a process of the cluster belongs to, by which it is found and killed.
//!
//! Every process of a cluster is in a group below `/backlot/<cluster>`, containers included, and nothing else is. So a node can die as a
//! machine dies, and `down` needs no list of processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::slots::exclusive;

const DEADLINE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// The hierarchies of this machine. Version 1 has one per controller, version 2 one for all; many machines have both, with all
/// controllers in version 1, and then the runtime puts containers into both.
#[derive(Debug)]
pub struct Hierarchies {
    separate: Vec<PathBuf>,
    unified: Vec<PathBuf>,
}

impl Hierarchies {
    /// Reads the mount table.
    pub fn of_this_machine() -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
        Self::from_mounts(&table)
    }

    fn from_mounts(table: &str) -> Result<Self> {
        let of = |wanted: &str| -> Vec<PathBuf> {
            table
                .lines()
                .map(|line| line.split(' ').collect::<Vec<_>>())
                .filter(|fields| fields.get(2) == Some(&wanted))
                .filter_map(|fields| fields.get(1).map(PathBuf::from))
                .collect()
        };
        let found = Self { separate: of("cgroup"), unified: of("cgroup2") };
        if found.separate.is_empty() && found.unified.is_empty() {
            bail!("no control groups are mounted: mount them at /sys/fs/cgroup");
        }
        Ok(found)
    }

    fn roots(&self) -> impl Iterator<Item = &Path> {
        self.separate.iter().chain(&self.unified).map(PathBuf::as_path)
    }

    /// Makes a group in every hierarchy, ready to take processes or groups below it.
    pub fn create(&self, group: &Path) -> Result<()> {
        let _lock = lock()?;
        for root in self.roots() {
            let mut folder = root.to_owned();
            for part in group {
                if self.unified.iter().any(|unified| unified == root) {
                    enable_controllers(&folder)?;
                }
                let above = folder.clone();
                folder.push(part);
                if !folder.is_dir() {
                    fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
                }
                for setting in ["cpuset.cpus", "cpuset.mems"] {
                    inherit(&above.join(setting), &folder.join(setting))?;
                }
            }
        }
        Ok(())
    }

    /// The files to which a process writes its id in order to join the group.
    pub fn membership(&self, group: &Path) -> Vec<PathBuf> {
        self.roots().map(|root| root.join(group).join("cgroup.procs")).collect()
    }

    /// Kills every process of the group and of those below it, and returns when none is left.
    pub fn kill(&self, group: &Path) -> Result<()> {
        let started = Instant::now();
        loop {
            let members = self.members(group);
            if members.is_empty() {
                return Ok(());
            }
            if started.elapsed() > DEADLINE {
                bail!("processes {members:?} of {} do not die", group.display());
            }
            for pid in members {
                match kill(pid, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error).with_context(|| format!("kill process {pid}")),
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The processes of the group and of those below it.
    pub fn members(&self, group: &Path) -> Vec<Pid> {
        let mut members = Vec::new();
        for root in self.roots() {
            for folder in folders(&root.join(group)) {
                // A group that is removed meanwhile has no members.
                let ids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                members.extend(ids.lines().filter_map(|id| id.parse().ok()).filter(|id| *id > 0).map(Pid::from_raw));
            }
        }
        members.sort();
        members.dedup();
        members
    }

    /// Removes the group and those below it, which must be empty, and those above it that are empty then.
    pub fn remove(&self, group: &Path) -> Result<()> {
        let _lock = lock()?;
        let started = Instant::now();
        for root in self.roots() {
            for folder in folders(&root.join(group)).into_iter().rev() {
                while let Err(error) = fs::remove_dir(&folder) {
                    if error.kind() == std::io::ErrorKind::NotFound {
                        break;
                    }
                    // A killed process holds its group until it is reaped.
                    if started.elapsed() > DEADLINE {
                        return Err(error).with_context(|| format!("remove {}", folder.display()));
                    }
                    std::thread::sleep(PAUSE);
                }
            }
            for above in group.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
                // It is refused while another cluster is in it.
                let _ = fs::remove_dir(root.join(above));
            }
        }
        Ok(())
    }

    /// The folders of the group that exist.
    pub fn existing(&self, group: &Path) -> Vec<PathBuf> {
        self.roots().map(|root| root.join(group)).filter(|folder| folder.exists()).collect()
    }
}

/// Groups that several clusters share are made and removed by one run at a time.
fn lock() -> Result<fs::File> {
    exclusive(Path::new("/run/backlot/cgroups.lock"))
}

/// The folder and all below it, parents first.
fn folders(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![top.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let below = entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        open.extend(below.map(|entry| entry.path()));
        found.push(folder);
    }
    found
}

/// A cpuset group takes no process until it has CPUs and memory nodes.
fn inherit(above: &Path, own: &Path) -> Result<()> {
    let Ok(current) = fs::read_to_string(own) else { return Ok(()) };
    if !current.trim().is_empty() {
        return Ok(());
    }
    let value = fs::read_to_string(above).with_context(|| format!("read {}", above.display()))?;
    fs::write(own, value).with_context(|| format!("write {}", own.display()))
}

fn enable_controllers(folder: &Path) -> Result<()> {
    let available = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> = available.split_whitespace().map(|name| format!("+{name}")).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let file = folder.join("cgroup.subtree_control");
    fs::write(&file, wanted.join(" ")).with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_used() {
        let table = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n";
        let found = Hierarchies::from_mounts(table).unwrap();
        let roots: Vec<&Path> = found.roots().collect();
        assert_eq!(roots, [Path::new("/sys/fs/cgroup/pids"), Path::new("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn a_machine_without_control_groups_is_refused() {
        assert!(Hierarchies::from_mounts("tmpfs /tmp tmpfs rw 0 0\n").is_err());
    }
}
