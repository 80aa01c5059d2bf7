//! What a program asks of the system's C library, read from its dynamic section by `readelf`.

use std::path::Path;
use std::process::Command;

use super::output;

/// What a program was linked against.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Linked {
    /// The newest version of glibc of which it uses a symbol, such as (2, 17).
    pub(super) glibc: (u32, u32),
    /// The libraries that it loads.
    pub(super) libraries: Vec<String>,
    /// Whether it carries the list of its dependencies that cargo-auditable puts in.
    pub(super) auditable: bool,
}

/// Looks into a program.
pub(super) fn linked(program: &Path) -> Result<Linked, String> {
    let args = ["--wide", "--version-info", "--dynamic", "--section-headers"];
    let text = output(Command::new("readelf").args(args).arg(program).env("LC_ALL", "C"))?;
    parse(&text).ok_or_else(|| format!("{} uses no glibc: is it a program?", program.display()))
}

fn parse(text: &str) -> Option<Linked> {
    let version = |name: &str| {
        let mut parts = name.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    };
    let names =
        text.split("Name: GLIBC_").skip(1).filter_map(|rest| rest.split_whitespace().next());
    let glibc = names.filter_map(version).max()?;
    let needed = text.lines().filter(|l| l.contains("(NEEDED)"));
    let libraries = needed
        .filter_map(|l| l.split_once('[').and_then(|(_, rest)| rest.split_once(']')))
        .map(|(name, _)| name.to_owned())
        .collect();
    Some(Linked { glibc, libraries, auditable: text.contains(" .dep-v0 ") })
}

/// The packages of Debian that hold those libraries, with the least version that will do.
pub(super) fn debian_needs(all: &[Linked]) -> Vec<String> {
    let newest = all.iter().map(|l| l.glibc).max().unwrap_or((2, 17));
    let mut needs = vec![format!("libc6 (>= {}.{})", newest.0, newest.1)];
    if all.iter().flat_map(|l| &l.libraries).any(|l| l.starts_with("libgcc_s.")) {
        needs.push("libgcc-s1".to_owned());
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_symbol_version_counts_as_a_number_not_as_text() {
        let text = " [27] .dep-v0 PROGBITS\n 0x1 (NEEDED) Shared library: [libc.so.6]\n\
                    0x1 (NEEDED) Shared library: [libgcc_s.so.1]\n\
                    0x0010: Name: GLIBC_2.9  Flags: none\n 0x0020: Name: GLIBC_2.17  Flags: none\n\
                    0x0030: Name: GLIBC_2.2.5  Flags: none\n 0x0040: Name: GCC_3.0  Flags: none\n";
        let linked = parse(text).unwrap();
        assert_eq!(linked.glibc, (2, 17));
        assert_eq!(linked.libraries, ["libc.so.6", "libgcc_s.so.1"]);
        assert!(linked.auditable);
        assert_eq!(debian_needs(&[linked]), ["libc6 (>= 2.17)", "libgcc-s1"]);
        assert_eq!(parse("There is no dynamic section"), None);
    }
}
