//! A group of processes that may have only so much memory: a cgroup of either version.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The group; gone when this is dropped, if its processes are.
pub struct Cage {
    dir: PathBuf,
}

impl Cage {
    /// A group that may have `memory_max` bytes, file pages included.
    ///
    /// # Errors
    /// Where this process may make none: not root, or no memory controller to be had.
    pub fn new(name: &str, memory_max: u64) -> Result<Self> {
        let name = format!("heartwatch-{name}-{}", std::process::id());
        // Version 1 has a tree for each resource; version 2 has one for all, which must hand memory down.
        let (top, limit) = match std::fs::metadata("/sys/fs/cgroup/memory/cgroup.procs") {
            Ok(_) => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            Err(_) => ("/sys/fs/cgroup", "memory.max"),
        };
        if limit == "memory.max" {
            std::fs::write(format!("{top}/cgroup.subtree_control"), "+memory")
                .context("the memory controller cannot be had")?;
        }
        let cage = Self { dir: PathBuf::from(top).join(name) };
        std::fs::create_dir(&cage.dir).context("cannot make a cgroup")?;
        std::fs::write(cage.dir.join(limit), memory_max.to_string())
            .context("cannot limit a cgroup's memory")?;
        Ok(cage)
    }

    /// The file into which a process writes its id to be in the group.
    pub fn procs(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // Still in use only where a test failed already; the machine's next start clears it away.
        drop(std::fs::remove_dir(&self.dir));
    }
}
