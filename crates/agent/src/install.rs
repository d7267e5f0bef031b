//! `install`: copies this binary into the volume that it is started from. Invariant: a half copy is never in place.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

/// Copies this binary to `directory/backlot-agent`, mode 0755.
pub fn run(directory: &Path) -> ExitCode {
    match copy(directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("backlot-agent install: cannot copy this binary into {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn copy(directory: &Path) -> std::io::Result<()> {
    let temporary = directory.join(".backlot-agent.tmp");
    std::fs::copy("/proc/self/exe", &temporary)?;
    std::fs::set_permissions(&temporary, PermissionsExt::from_mode(0o755))?;
    std::fs::rename(&temporary, directory.join("backlot-agent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_whole_and_executable() {
        let directory = tempfile::tempdir().unwrap();
        copy(directory.path()).unwrap();
        let copied = std::fs::metadata(directory.path().join("backlot-agent")).unwrap();
        assert_eq!(copied.len(), std::fs::metadata("/proc/self/exe").unwrap().len());
        assert_eq!(copied.permissions().mode() & 0o777, 0o755);
        assert!(copy(&directory.path().join("absent")).is_err());
    }
}
