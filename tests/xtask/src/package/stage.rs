//! Lays the files of a package out as they will lie on a host; both formats are packed from this folder.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::build::Programs;
use super::elf;
use super::{Options, Product, make_dir, output, remove_dir, write};
use crate::machine::{root, target_dir};

/// A staged package.
pub(super) struct Staged {
    /// The root of its files.
    pub(super) dir: PathBuf,
    /// What it needs of Debian.
    pub(super) debian_needs: Vec<String>,
}

/// The system folder into which each of `packaging/systemd/NAME.SUFFIX` goes, and what it is called there.
const UNIT_FILES: [(&str, &str, &str); 4] = [
    ("service", "usr/lib/systemd/system", "NAME.service"),
    ("sysusers.conf", "usr/lib/sysusers.d", "NAME.conf"),
    ("tmpfiles.conf", "usr/lib/tmpfiles.d", "NAME.conf"),
    ("sysctl.conf", "usr/lib/sysctl.d", "50-NAME.conf"),
];

/// Lays a product's files out.
pub(super) fn stage(
    product: &Product,
    programs: &Programs,
    options: &Options,
) -> Result<Staged, String> {
    let dir = target_dir().join("package-stage").join(&options.profile).join(product.name);
    remove_dir(&dir)?;
    let place = |inside: &str| {
        let path = dir.join(inside);
        make_dir(&path)?;
        Ok::<_, String>(path)
    };
    for program in product.programs {
        let to = place("usr/bin")?.join(program);
        copy(&programs.path(program), &to, 0o755)?;
        if !options.is_release() {
            // Names of functions are half of it; what is released has none already.
            output(Command::new("strip").arg("--strip-unneeded").arg(&to))?;
        }
        document(&to, program, &place)?;
    }
    let packaging = root().join("packaging");
    for (suffix, folder, named) in UNIT_FILES {
        let from = packaging.join("systemd").join(format!("{}.{suffix}", product.name));
        if from.is_file() {
            let to = place(folder)?.join(named.replace("NAME", product.name));
            copy(&from, &to, 0o644)?;
        }
    }
    let example = packaging.join("examples").join(product.config);
    let text =
        std::fs::read_to_string(&example).map_err(|e| format!("{}: {e}", example.display()))?;
    let doc = place(&format!("usr/share/doc/{}", product.name))?;
    make_dir(&doc.join("examples"))?;
    write(&doc.join("examples").join(product.config), &text)?;
    write(&place("etc/heartwatch")?.join(product.config), &installed_config(&text))?;
    copy(&packaging.join("copyright"), &doc.join("copyright"), 0o644)?;
    copy(&root().join("CHANGELOG.md"), &doc.join("changelog"), 0o644)?;
    gzip(&doc.join("changelog"))?;
    settle(&dir, options.epoch)?;
    let linked: Vec<elf::Linked> = product
        .programs
        .iter()
        .map(|name| elf::linked(&programs.path(name)))
        .collect::<Result<_, _>>()?;
    let mut debian_needs = elf::debian_needs(&linked);
    debian_needs.push("passwd".to_owned());
    debian_needs.extend(product.needs.iter().map(|n| (*n).to_owned()));
    Ok(Staged { dir, debian_needs })
}

/// The example as a host gets it: nobody beats to `controller.example`, so that line is a comment there,
/// and an agent without it says that it is not set up yet.
fn installed_config(example: &str) -> String {
    let line = |l: &str| {
        if l.starts_with("controllers = ") { format!("#: {l}\n") } else { format!("{l}\n") }
    };
    example.lines().map(line).collect()
}

/// Manual pages and completions, by the program itself.
fn document(
    program: &Path,
    name: &str,
    place: &dyn Fn(&str) -> Result<PathBuf, String>,
) -> Result<(), String> {
    let generate =
        |form: &str, dir: &Path| output(Command::new(program).args(["generate", form]).arg(dir));
    let man = place("usr/share/man/man1")?;
    generate("man", &man)?;
    let pages = std::fs::read_dir(&man).map_err(|e| format!("{}: {e}", man.display()))?;
    for page in pages.filter_map(Result::ok).map(|e| e.path()) {
        if page.extension().is_some_and(|e| e == "1") {
            gzip(&page)?;
        }
    }
    let made = target_dir().join("package-stage/completions");
    make_dir(&made)?;
    generate("completions", &made)?;
    for (file, folder) in [
        (name.to_owned(), "usr/share/bash-completion/completions"),
        (format!("{name}.fish"), "usr/share/fish/vendor_completions.d"),
        // Debian's zsh looks here; Fedora's looks in site-functions, for which the spec moves it.
        (format!("_{name}"), "usr/share/zsh/vendor-completions"),
    ] {
        copy(&made.join(&file), &place(folder)?.join(&file), 0o644)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), String> {
    std::fs::copy(from, to)
        .and_then(|_| std::fs::set_permissions(to, PermissionsExt::from_mode(mode)))
        .map_err(|e| format!("cannot copy {} to {}: {e}", from.display(), to.display()))
}

/// Without name and time, so that the same text gives the same bytes.
pub(super) fn gzip(path: &Path) -> Result<(), String> {
    output(Command::new("gzip").args(["-9", "-n", "-f"]).arg(path)).map(drop)
}

/// Modes that do not depend on this user's umask, and one date for everything.
pub(super) fn settle(dir: &Path, epoch: u64) -> Result<(), String> {
    for args in [
        &["-type", "d", "-exec", "chmod", "0755", "{}", "+"],
        &["-type", "f", "-not", "-path", "*/usr/bin/*", "-exec", "chmod", "0644", "{}", "+"][..],
    ] {
        output(Command::new("find").arg(dir).args(args))?;
    }
    let date = format!("--date=@{epoch}");
    let touch = ["-depth", "-exec", "touch", "--no-dereference", &date, "{}", "+"];
    output(Command::new("find").arg(dir).args(touch)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::PRODUCTS;
    use super::*;

    #[test]
    fn an_installed_agent_has_no_controller_but_all_else_is_as_in_the_example() {
        let example = "# a\ncontrollers = [\"controller.example:2328\"]\ninterval = \"1s\"\n";
        let installed = "# a\n#: controllers = [\"controller.example:2328\"]\ninterval = \"1s\"\n";
        assert_eq!(installed_config(example), installed);
        assert_eq!(installed_config(installed), installed);
    }

    #[test]
    fn every_product_has_an_example_and_a_unit() {
        for product in &PRODUCTS {
            let packaging = root().join("packaging");
            assert!(packaging.join("examples").join(product.config).is_file());
            let unit = format!("{}.service", product.name);
            assert!(packaging.join("systemd").join(unit).is_file());
        }
    }
}
