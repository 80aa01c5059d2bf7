//! Packs staged files as .deb and .rpm, with the tools of those distributions, and has them judged by theirs.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::stage::{Staged, gzip, settle};
use super::{Options, Product, make_dir, output, remove_dir, write};
use crate::machine::{root, target_dir};

/// Who answers for the packages.
const MAINTAINER: &str = "Heartwatch maintainers <maintainers@heartwatch.invalid>";
/// Folders that belong to the distribution; an rpm must own every other one, or it would stay behind.
const SHARED_DIRS: [&str; 13] = [
    "etc",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/lib/systemd",
    "usr/lib/systemd/system",
    "usr/lib/sysusers.d",
    "usr/lib/tmpfiles.d",
    "usr/lib/sysctl.d",
    "usr/share",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/man/man1",
];

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// A template of `packaging/`, filled in.
fn filled(template: &str, words: &[(&str, &str)]) -> Result<String, String> {
    let packaging = root().join("packaging");
    let mut text = read(&packaging.join(template))?;
    // First, as it names others.
    text = text.replace("@SHARED@", &read(&packaging.join("scripts.sh"))?);
    for (word, value) in words {
        text = text.replace(&format!("@{word}@"), value);
    }
    Ok(text)
}

fn formatted_date(epoch: u64, format: &str) -> Result<String, String> {
    let mut date = Command::new("date");
    date.args(["-u", &format!("--date=@{epoch}"), format]).env("LC_ALL", "C");
    Ok(output(&mut date)?.trim().to_owned())
}

/// All files and folders below `dir`, relative to it, sorted.
fn walk(dir: &Path) -> Result<Vec<(String, bool)>, String> {
    fn into(top: &Path, dir: &Path, found: &mut Vec<(String, bool)>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned();
            found.push((name, path.is_dir()));
            if path.is_dir() {
                into(top, &path, found)?;
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    into(dir, dir, &mut found).map_err(|e| format!("{}: {e}", dir.display()))?;
    found.sort();
    Ok(found)
}

/// A Debian package.
pub(super) fn deb(
    product: &Product,
    staged: &Staged,
    options: &Options,
) -> Result<PathBuf, String> {
    let version = format!("{}-1", options.version);
    let dir = staged.dir.with_file_name(format!("{}.deb-root", product.name));
    remove_dir(&dir)?;
    output(Command::new("cp").args(["-a", "-T"]).args([&staged.dir, &dir]))?;
    let doc = dir.join("usr/share/doc").join(product.name);
    let date = formatted_date(options.epoch, "+%a, %d %b %Y %H:%M:%S +0000")?;
    let changes = format!(
        "{} ({version}) stable; urgency=medium\n\n  * What has changed for users: changelog.gz.\n\n -- {MAINTAINER}  {date}\n",
        product.name
    );
    write(&doc.join("changelog.Debian"), &changes)?;
    gzip(&doc.join("changelog.Debian"))?;
    let overrides =
        root().join("packaging/deb").join(format!("{}.lintian-overrides", product.name));
    if overrides.is_file() {
        let folder = dir.join("usr/share/lintian/overrides");
        make_dir(&folder)?;
        write(&folder.join(product.name), &read(&overrides)?)?;
    }
    let control = dir.join("DEBIAN");
    make_dir(&control)?;
    let files = walk(&dir)?;
    let of_package = || files.iter().filter(|f| !f.0.starts_with("DEBIAN"));
    let plain: Vec<&str> = of_package().filter(|f| !f.1).map(|f| f.0.as_str()).collect();
    let sums = output(Command::new("md5sum").args(&plain).current_dir(&dir))?;
    write(&control.join("md5sums"), &sums)?;
    let conffiles: String =
        plain.iter().filter(|f| f.starts_with("etc/")).map(|f| format!("/{f}\n")).collect();
    write(&control.join("conffiles"), &conffiles)?;
    write(&control.join("control"), &control_file(product, staged, &version, &dir, &plain)?)?;
    for script in ["postinst", "prerm", "postrm"] {
        let text = filled(&format!("deb/{script}"), &words(product, options))?;
        write(&control.join(script), &text)?;
    }
    settle(&dir, options.epoch)?;
    for script in ["postinst", "prerm", "postrm"] {
        output(Command::new("chmod").arg("0755").arg(control.join(script)))?;
    }
    make_dir(&options.out)?;
    let to = options.out.join(format!("{}_{version}_amd64.deb", product.name));
    // xz: every dpkg of the last ten years reads it, zstd not.
    let mut pack = Command::new("dpkg-deb");
    pack.args([
        "--root-owner-group",
        "--threads-max=1",
        "-Zxz",
        effort(options, "-z9", "-z1"),
        "--build",
    ])
    .args([&dir, &to]);
    output(pack.env("SOURCE_DATE_EPOCH", options.epoch.to_string()))?;
    remove_dir(&dir)?;
    Ok(to)
}

/// What is only tried out need not be small.
fn effort<'a>(options: &Options, released: &'a str, tried: &'a str) -> &'a str {
    if options.is_release() { released } else { tried }
}

fn words<'a>(product: &'a Product, options: &'a Options) -> [(&'a str, &'a str); 5] {
    [
        ("NAME", product.name),
        ("SUMMARY", product.summary),
        ("DESCRIPTION", product.description),
        ("VERSION", &options.version),
        ("MAINTAINER", MAINTAINER),
    ]
}

fn control_file(
    product: &Product,
    staged: &Staged,
    version: &str,
    dir: &Path,
    files: &[&str],
) -> Result<String, String> {
    let mut kib = 0;
    for file in files {
        let path = dir.join(file);
        let len = std::fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?.len();
        kib += len.div_ceil(1024);
    }
    let mut text = format!(
        "Package: {}\nVersion: {version}\nArchitecture: amd64\nMaintainer: {MAINTAINER}\n\
         Installed-Size: {kib}\nDepends: {}\nSection: admin\nPriority: optional\nDescription: {}\n",
        product.name,
        staged.debian_needs.join(", "),
        product.summary
    );
    text.extend(product.description.lines().map(|line| format!(" {line}\n")));
    Ok(text)
}

/// An rpm package.
pub(super) fn rpm(
    product: &Product,
    staged: &Staged,
    options: &Options,
) -> Result<PathBuf, String> {
    let top = target_dir().join("package-stage/rpmbuild").join(&options.profile);
    remove_dir(&top)?;
    make_dir(&top)?;
    let mut files = String::new();
    for (name, is_dir) in walk(&staged.dir)? {
        let shown = name.replace("zsh/vendor-completions", "zsh/site-functions");
        let line = if is_dir {
            if SHARED_DIRS.contains(&name.as_str()) || name == "etc/heartwatch" {
                continue;
            }
            format!("%dir /{shown}")
        } else if name.starts_with("etc/") {
            format!("%config(noreplace) /{shown}")
        } else if name.starts_with("usr/share/doc/") || name.starts_with("usr/share/man/") {
            format!("%doc /{shown}")
        } else {
            format!("/{shown}")
        };
        files.push_str(&line);
        files.push('\n');
    }
    let requires: String = product.needs.iter().map(|n| format!("Requires: {n}\n")).collect();
    let changed = formatted_date(options.epoch, "+%a %b %d %Y")?;
    let stage = staged.dir.to_string_lossy();
    let mut all = words(product, options).to_vec();
    all.extend([("FILES", files.as_str()), ("REQUIRES", requires.as_str())]);
    let mut capitalised = product.summary.to_owned();
    capitalised[..1].make_ascii_uppercase();
    all.push(("CAPITALISED", &capitalised));
    all.extend([("CHANGED", changed.as_str()), ("STAGE", &*stage)]);
    let spec = top.join(format!("{}.spec", product.name));
    write(&spec, &filled("rpm/spec", &all)?)?;
    make_dir(&options.out)?;
    let out = options.out.to_string_lossy().into_owned();
    let topdir = top.to_string_lossy().into_owned();
    let mut pack = Command::new("rpmbuild");
    pack.args(["-bb", "--quiet", "--target", "x86_64"]);
    for (name, value) in [
        ("_topdir", topdir.as_str()),
        ("_rpmdir", &out),
        ("_build_name_fmt", "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm"),
        ("_buildhost", "localhost"),
        ("use_source_date_epoch_as_buildtime", "1"),
        ("clamp_mtime_to_source_date_epoch", "1"),
        // Every rpm of the last ten years reads xz; zstd, the default of some, CentOS 7 does not.
        ("_binary_payload", effort(options, "w6.xzdio", "w1.xzdio")),
        ("_build_id_links", "none"),
        ("debug_package", "%{nil}"),
        ("__os_install_post", "%{nil}"),
    ] {
        pack.arg("--define").arg(format!("{name} {value}"));
    }
    pack.env("SOURCE_DATE_EPOCH", options.epoch.to_string()).env("LC_ALL", "C.UTF-8");
    output(pack.arg(&spec))?;
    Ok(options.out.join(format!("{}-{}-1.x86_64.rpm", product.name, options.version)))
}

/// Has lintian and rpmlint judge the packages. What they may complain of stands, with its reason, in
/// `packaging/deb/*.lintian-overrides` and `packaging/rpm/rpmlint.toml`.
pub(super) fn lint(packed: &[PathBuf]) -> Result<(), String> {
    let is = |path: &&PathBuf, kind: &str| path.extension().is_some_and(|e| e == kind);
    let debs: Vec<_> = packed.iter().filter(|p| is(p, "deb")).collect();
    let rpms: Vec<_> = packed.iter().filter(|p| is(p, "rpm")).collect();
    let mut lintian = Command::new("lintian");
    lintian
        .args(["--allow-root", "--fail-on", "error,warning", "--no-tag-display-limit"])
        .args(debs);
    judge("lintian", &mut lintian)?;
    let config = root().join("packaging/rpm/rpmlint.toml");
    let mut rpmlint = Command::new("rpmlint");
    rpmlint.arg("--config").arg(config).args(["--strict"]).args(rpms);
    judge("rpmlint", &mut rpmlint)
}

fn judge(name: &str, command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|e| format!("cannot run {name}: {e}"))?;
    let said = String::from_utf8_lossy(&out.stdout);
    if out.status.success() {
        println!("{name}: clean");
        return Ok(());
    }
    Err(format!("{name} found:\n{said}{}", String::from_utf8_lossy(&out.stderr)))
}
