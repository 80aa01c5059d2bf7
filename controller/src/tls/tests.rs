//! Files in, certificates out; and what does not get in.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use super::*;

const LISTEN: &str = "192.0.2.7:2328";
const NOW: Wall = Wall(1_800_000_000_000);

fn files(dir: &Path) -> Files {
    let listen: SocketAddr = LISTEN.parse().unwrap();
    let (certificate, key) = make::ensure(dir, listen, NOW).unwrap();
    Files { certificate, key, client_ca: None }
}

#[test]
fn a_certificate_is_made_once_and_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let first = Tls::open(files(dir.path())).unwrap();
    let again = Tls::open(files(dir.path())).unwrap();
    assert_eq!(first.fingerprint(), again.fingerprint());
    let years = first.current().days_left(NOW) / 365.25;
    assert!((19.9..21.1).contains(&years), "{years}");
    assert_eq!(first.current().warning(NOW), None);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&files(dir.path()).key), 0o600);
    let late = Wall(first.current().not_after.0 - 13 * 86_400_000);
    assert!(first.current().warning(late).unwrap().contains("in 13 days"));
    assert!(first.current().warning(first.current().not_after).unwrap().contains("ended"));
}

#[test]
fn a_crash_while_it_was_made_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(make::KEY_FILE), "half a k").unwrap();
    assert!(Tls::open(files(dir.path())).is_ok());
}

#[test]
fn a_good_change_is_taken_and_a_bad_one_keeps_what_was() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (files(dir.path()), files(other.path()));
    let tls = Tls::open(ours.clone()).unwrap();
    let before = tls.fingerprint();
    assert!(matches!(tls.refresh(NOW), Refresh::Same));

    // The certificate alone: it and the old key are no pair.
    std::fs::copy(&theirs.certificate, &ours.certificate).unwrap();
    assert!(matches!(tls.refresh(NOW), Refresh::Refused(TlsError::Pair { .. })));
    assert!(matches!(tls.refresh(NOW), Refresh::Same), "refused once, not at every look");
    assert_eq!(tls.fingerprint(), before);
    std::fs::copy(&theirs.key, &ours.key).unwrap();
    assert!(matches!(tls.refresh(NOW), Refresh::Taken));
    let after = tls.fingerprint();
    assert_ne!(before, after);

    std::fs::write(&ours.certificate, "not PEM").unwrap();
    assert!(matches!(tls.refresh(NOW), Refresh::Refused(_)));
    std::fs::remove_file(&ours.certificate).unwrap();
    assert!(matches!(tls.refresh(NOW), Refresh::Refused(_)));
    std::fs::copy(&theirs.certificate, &ours.certificate).unwrap();
    std::fs::set_permissions(&ours.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let Refresh::Refused(e) = tls.refresh(NOW) else {
        panic!("a key that others may read was taken")
    };
    assert!(e.to_string().contains("chmod 600"), "{e}");
    assert_eq!(tls.fingerprint(), after);
    let counts = &tls.counts;
    let (taken, refused) = (&counts.reloads, &counts.reloads_refused);
    assert_eq!((taken.load(Ordering::Relaxed), refused.load(Ordering::Relaxed)), (1, 4));
}

#[test]
fn what_has_ended_is_not_taken() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (files(dir.path()), files(other.path()));
    let tls = Tls::open(ours.clone()).unwrap();
    std::fs::copy(&theirs.certificate, &ours.certificate).unwrap();
    std::fs::copy(&theirs.key, &ours.key).unwrap();
    let Refresh::Refused(e) = tls.refresh(tls.current().not_after) else { panic!("it was taken") };
    assert!(e.to_string().contains("ended at"), "{e}");
}

#[test]
fn a_file_that_others_may_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ours = files(dir.path());
    std::fs::set_permissions(&ours.certificate, std::fs::Permissions::from_mode(0o666)).unwrap();
    let e = Tls::open(ours).err().unwrap();
    assert!(e.to_string().contains("chmod go-w"), "{e}");
}

#[test]
fn fingerprints_are_read_as_others_write_them() {
    let plain = "00".repeat(31) + "fF";
    let colons = format!("SHA256:{}FF", "00:".repeat(31));
    assert_eq!(plain.parse::<Fingerprint>(), colons.parse());
    assert_eq!(plain.parse::<Fingerprint>().unwrap().to_string(), plain.to_lowercase());
    for bad in ["", "ff", &"g".repeat(64), &"0".repeat(65), "sha256:", "é"] {
        assert_eq!(bad.parse::<Fingerprint>(), Err(FingerprintError), "{bad}");
    }
}
