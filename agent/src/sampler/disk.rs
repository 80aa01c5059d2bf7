//! How full the fullest local file system is.
//!
//! Only file systems of a known local type are asked: asking one on the network can hang for as
//! long as its server is away. Even a local one can hang (a dying disk), so this runs in a thread
//! of its own. File systems mounted read-only do not count: full is how they are made.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use heartwatch_common::load::Share;
use nix::sys::statvfs::statvfs;

use super::proc::{LINES_MAX, read};

/// The file systems that lie on this host's own disks. Not `vfat`: firmware partitions are small
/// and full, and nothing grows there.
pub const LOCAL: [&str; 9] =
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "reiserfs"];

/// The used share of the fullest local file system; unknown if none could be asked. May hang.
pub fn fullest(root: &Path) -> Share {
    let Ok(text) = read(&root.join("proc/self/mountinfo")) else { return Share::UNKNOWN };
    let shares = mounts(&text).into_iter().filter_map(|point| used(&point));
    shares.max_by_key(|share| share.to_byte()).unwrap_or(Share::UNKNOWN)
}

/// Used blocks over those that are used or could be by anybody, as `df` shows it.
fn used(point: &Path) -> Option<Share> {
    let stat = statvfs(point).ok()?;
    let used = stat.blocks().saturating_sub(stat.blocks_free());
    let share = Share::of(used, used.saturating_add(stat.blocks_available()));
    share.ratio().map(|_| share)
}

/// One mount point for each local, writable file system in the text of `/proc/self/mountinfo`.
///
/// A line: `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/sda rw`; see
/// proc_pid_mountinfo(5). Field 3 tells file systems apart; after the lone `-` stand type, source
/// and the file system's own options. An overlay counts only as the root (of a container):
/// elsewhere its upper file system is mounted, and counted, itself.
pub fn mounts(text: &str) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let mut points = Vec::new();
    for line in text.lines().take(LINES_MAX) {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let mut mount = mount.split(' ');
        let (Some(device), Some(point)) = (mount.nth(2), mount.nth(1)) else { continue };
        let mut file_system = file_system.split(' ');
        let (Some(kind), Some(options)) = (file_system.next(), file_system.nth(1)) else {
            continue;
        };
        let local = LOCAL.contains(&kind) || (kind == "overlay" && point == "/");
        let writable = !options.split(',').any(|o| o == "ro");
        if local && writable && seen.insert(device) {
            points.push(unescape(point));
        }
    }
    points
}

/// Undoes the kernel's escapes: `\040` for a space, likewise tab, newline and backslash.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INFO: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 8:2 / /with\\040space rw - xfs /dev/sda2 rw
25 22 8:1 /var/lib /bind rw master:1 shared:2 - ext4 /dev/sda1 rw
26 22 0:50 / /net rw - nfs4 server:/x rw,hard
27 22 0:51 / /cifs rw - cifs //server/x rw
28 22 0:52 / /fuse rw - fuse.sshfs me@server: rw
29 22 0:53 / /nine rw - 9p host rw
30 22 7:0 / /iso ro - ext4 /dev/loop0 ro
31 22 8:3 / /readonly-here ro - btrfs /dev/sda3 rw,ssd
32 22 0:60 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw,lowerdir=/l
33 22 0:61 / /tmp rw - tmpfs tmpfs rw
broken line
34 22 - ext4
";

    #[test]
    fn only_local_writable_file_systems_count_and_each_once() {
        let want: Vec<PathBuf> = ["/", "/with space", "/readonly-here"].map(PathBuf::from).into();
        assert_eq!(mounts(INFO), want);
    }

    #[test]
    fn a_containers_root_counts() {
        let text = "1 0 0:39 / / rw,relatime - overlay overlay rw,upperdir=/u";
        assert_eq!(mounts(text), [PathBuf::from("/")]);
    }

    #[test]
    fn nothing_to_ask_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(fullest(dir.path()), Share::UNKNOWN);
        std::fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        let info = dir.path().join("proc/self/mountinfo");
        std::fs::write(&info, "1 0 8:1 / /no/such/mount/point rw - ext4 /dev/sda rw").unwrap();
        assert_eq!(fullest(dir.path()), Share::UNKNOWN);
        std::fs::write(&info, "1 0 8:1 / / rw - ext4 /dev/sda rw").unwrap();
        assert!(fullest(dir.path()).ratio().is_some());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[ -~\\\\\\n]{0,300}") {
            prop_assert!(mounts(&text).len() <= text.len());
            unescape(&text);
        }
    }
}
