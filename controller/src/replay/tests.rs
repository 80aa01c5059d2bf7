use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::read::{HEADER, LINE_LEN_MAX, Pace, ReadError, read};
use super::table::{Named, report};
use super::*;
use crate::config::RawConfig;
use crate::detector::timeout::Patience;

const PACE: Pace = Pace { interval: Duration::from_secs(1), jitter: 0.1, seed: 7 };
const ALL: Options = Options { seed: 1, skip: Some(Duration::ZERO) };

/// A file in a folder of its own, which goes with the first value.
fn file(name: &str, text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn logs(name: &str, text: &str) -> Vec<HostLog> {
    let (_dir, path) = file(name, text);
    read(&[path], &PACE).unwrap()
}

/// Every margin is this long.
fn fixed(margin_ms: u64) -> Setting {
    let mut setting = Setting::of(&RawConfig::default().check().unwrap());
    let patience = &mut setting.knobs.patience;
    let margin = Duration::from_millis(margin_ms);
    *patience = Patience::new(patience.cost_s, margin, margin);
    setting
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

#[test]
fn detection_time_and_mistakes_of_a_lost_beat_are_as_by_hand() {
    // Sent at 1, 2, 3, 4 s by a clock 100 s ahead; the third is lost. Deadlines are arrival + 1.5 s.
    let text = format!(
        "{HEADER}\nh,1,101000000,1000000,1000000\nh,2,102000000,1000000,2000000\n\
         h,3,103000000,1000000,\nh,4,104000000,1000000,4000000\n"
    );
    let found = &replay(&logs("a.csv", &text), &fixed(500), &ALL, &mut |_| {})[0];
    let tally = &found.tally;
    // A crash in [1, 2), [2, 3) or [4, 5) is seen 1.5 to 0.5 s later; one in [3, 4) after 0.5 to 0 s, for
    // the deadline of 3.5 s passes meanwhile.
    assert!(near(tally.mean_s(), (3.0 * 1.0 + 0.125) / 4.0), "{}", tally.mean_s());
    assert!(near(tally.time_s, 4.0));
    // The fourth comes at 4 s, half a second after the host was suspected.
    assert_eq!(tally.mistakes, 1.0);
    assert!(near(tally.mistake_s().unwrap(), 0.5) && near(tally.accuracy(), 1.0 - 0.5 / 4.0));
    assert!(near(tally.mistakes_per_day(), 86_400.0 / 4.0));
    assert_eq!((found.beats, found.lost), (4, 1));
    // With two seconds to spare there is none.
    let patient = &replay(&logs("a.csv", &text), &fixed(2_000), &ALL, &mut |_| {})[0].tally;
    assert_eq!((patient.mistakes, patient.mistake_s()), (0.0, None));
    assert!(near(patient.mean_s(), (3.0 * 2.5 + 1.5) / 4.0), "{}", patient.mean_s());
}

#[test]
fn the_deadline_follows_the_delay_of_the_beat_by_hand() {
    // No jitter: sent each second. Delays 10, 30 and 10 ms: the slow average S rises by 20/64 ms with the
    // second, and the third is expected to have that much of it too.
    let pace = Pace { jitter: 0.0, ..PACE };
    let (_dir, path) = file("x.delays", "10\n30\n10\n");
    let tally = &replay(&read(&[path], &pace).unwrap(), &fixed(500), &ALL, &mut |_| {})[0].tally;
    let slow = 0.010 + 0.020 / 64.0;
    let third = slow - (slow - 0.010) / 64.0;
    let by_hand = [0.010, 0.030, third].map(|base| base + 0.5 + 0.5);
    let mean = by_hand.iter().sum::<f64>() / 3.0;
    assert!((tally.mean_s() - mean).abs() < 1e-6, "{} {mean}", tally.mean_s());
}

#[test]
fn lives_holes_and_overtaken_beats_are_told_apart() {
    let text = format!(
        "{HEADER}\n\
         h,1,1000000,1000000,111000000\n\
         h,3,3000000,1000000,113000000\n\
         h,2,2000000,1000000,113500000\n\
         h,9,9000000,1000000,119000000\n\
         h,1,12000000,1000000,122000000\n\
         h,2,13000000,1000000,1000000\n\
         other,1,5000000,1000000,1000\n"
    );
    let logs = logs("a.csv", &text);
    assert_eq!(logs.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["h", "other"]);
    let h = &logs[0];
    let seen: Vec<(u32, u64)> = h.beats.iter().map(|b| (b.seq, b.arrived_us)).collect();
    // Beat 2 came after 3: lost. 4 to 8 have no line: a hole. 1 again, later: a new life. The receiver's
    // clock began anew before the last: one more, a second after what was before.
    let lost = (2, LOST);
    let shifted = (2, 123_000_000);
    let h_seen =
        vec![(1, 111_000_000), lost, (3, 113_000_000), (9, 119_000_000), (1, 122_000_000), shifted];
    assert_eq!(seen.len(), 6);
    assert_eq!((seen, h.lives.clone()), (h_seen, vec![3, 4, 5]));
    // None of those breaks is a mistake, however short the margin, and nor is time counted across them.
    let tally = &replay(&logs, &fixed(600), &ALL, &mut |_| {})[0].tally;
    assert_eq!(tally.mistakes, 1.0, "3 came a second late, as 2 was lost");
    assert!(near(tally.time_s, 6.0), "{}", tally.time_s);
}

#[test]
fn clocks_that_drift_apart_do_not_add_to_the_detection_time() {
    // The agent's clock gains 50 ppm: after three hours it is half a second off.
    let mut text = format!("{HEADER}\n");
    for k in 1..=10_000u64 {
        text += &format!("h,{k},{},1000000,{}\n", k * 1_000_050, k * 1_000_000 + 7_000);
    }
    let tally = &replay(&logs("a.csv", &text), &fixed(500), &ALL, &mut |_| {})[0].tally;
    // 64 beats of drift on either side are 6 ms.
    assert!((tally.mean_s() - 1.0).abs() < 0.010, "{}", tally.mean_s());
    assert_eq!(tally.mistakes, 0.0);
}

#[test]
fn what_means_nothing_is_refused_with_its_line() {
    let csv = |line: &str| format!("{HEADER}\nh,1,1000000,1000000,1\n{line}\n");
    let long = "1".repeat(LINE_LEN_MAX + 1);
    let cases = [
        (csv("h,2,2000000,1000000"), 3, "4 cells"),
        (csv("h,2,2000000,1000000,5,6"), 3, "6 cells"),
        (csv("h,x,2000000,1000000,5"), 3, "seq is `x`"),
        (csv("h,-2,2000000,1000000,5"), 3, "seq is `-2`"),
        (csv("h,+2,2000000,1000000,5"), 3, "seq is `+2`"),
        (csv("h,4294967296,2000000,1000000,5"), 3, "seq is `4294967296`"),
        (csv("h,2,,1000000,5"), 3, "sent_us is ``"),
        (csv("h,2,99999999999999999999,1,5"), 3, "sent_us"),
        (csv("h,2,2000000,3600000001,5"), 3, "gap_us"),
        (csv("h,2,2000000,1000000,lost"), 3, "arrived_us is `lost`"),
        (csv(",2,2000000,1000000,5"), 3, "name"),
        (csv(""), 3, "1 cells"),
        (csv(&long), 3, "longer than 256 bytes"),
        ("seq,host\n".to_owned(), 1, "neither the header"),
        ("\n1\n".to_owned(), 1, "neither the header"),
        ("1\n\n".to_owned(), 2, "neither a delay"),
        ("1\nlate\n".to_owned(), 2, "`late` is neither a delay"),
        ("1\n-1\n".to_owned(), 2, "`-1`"),
        ("1\nNaN\n".to_owned(), 2, "`NaN`"),
        ("inf\n".to_owned(), 1, "`inf`"),
        ("1\n3600001\n".to_owned(), 2, "`3600001`"),
    ];
    for (text, line_no, wanted) in cases {
        let (_dir, path) = file("bad.csv", &text);
        match read(std::slice::from_ref(&path), &PACE) {
            Err(ReadError::Line { path: told, line, reason }) => {
                assert_eq!((told, line), (path, line_no), "{text}");
                assert!(reason.contains(wanted), "{text}: {reason}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let (_dir, path) = file("bad.csv", b"1\n\xff\n");
    assert!(read(&[path], &PACE).unwrap_err().to_string().ends_with("bad.csv:2: not text"));
}

#[test]
fn what_is_empty_or_twice_the_same_host_is_refused() {
    for text in ["", &format!("{HEADER}\n")] {
        let (_dir, path) = file("empty.csv", text);
        assert!(matches!(read(&[path], &PACE), Err(ReadError::Nothing { .. })));
    }
    let (dir, path) = file("h.delays", "1\n");
    assert!(
        read(&[path.clone(), path.clone()], &PACE).unwrap_err().to_string().contains("already")
    );
    let log = dir.path().join("log.csv");
    std::fs::write(&log, format!("{HEADER}\nh,1,1,1,1\n")).unwrap();
    assert!(read(&[path, log], &PACE).unwrap_err().to_string().contains("delay series already"));
    let empty = tempfile::tempdir().unwrap();
    let nothing = read(&[empty.path().to_owned()], &PACE).unwrap_err().to_string();
    assert!(nothing.contains("no file in it is named"), "{nothing}");
    let gone = read(&[PathBuf::from("/nowhere/x.csv")], &PACE).unwrap_err();
    assert!(matches!(gone, ReadError::Io { .. }));
}

#[test]
fn a_folder_is_read_whole_and_a_rotated_file_before_its_successor() {
    let (dir, _) = file("log.csv", format!("{HEADER}\nh,2,2000000,1000000,2000000\n"));
    let put = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    put("log.csv.1", format!("{HEADER}\r\nh,1,1000000,1000000,1000000\r\n"));
    put("a.delays", "5\nlost\n6.5\n".to_owned());
    put("notes.txt", "x".to_owned());
    let logs = read(&[dir.path().to_owned()], &PACE).unwrap();
    let shape: Vec<(&str, usize, usize)> =
        logs.iter().map(|l| (l.name.as_str(), l.beats.len(), l.lives.len())).collect();
    assert_eq!(shape, [("a", 3, 0), ("h", 2, 0)]);
    let a = &logs[0].beats;
    assert_eq!((a[0].arrived_us - a[0].sent_us, a[1].arrived_us), (5_000, LOST));
    assert_eq!(a[2].arrived_us - a[2].sent_us, 6_500);
    assert_eq!(a[0].sent_us + u64::from(a[0].gap_us), a[1].sent_us);
    assert!((900_000..=1_100_000).contains(&a[0].gap_us), "{}", a[0].gap_us);
}

/// Delays of a host that now and then loses beats and stalls.
fn series(seed: u64, beats: usize) -> String {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut one = || match rng.random_range(0..200u32) {
        0 => "lost\n".to_owned(),
        1 => format!("{:.1}\n", 300.0 + 2_000.0 * rng.random::<f64>()),
        _ => format!("{:.3}\n", 5.0 + 3.0 * rng.random::<f64>()),
    };
    (0..beats).map(|_| one()).collect()
}

#[test]
fn the_same_seed_gives_the_same_and_more_patience_fewer_mistakes() {
    let text = series(3, 20_000);
    let setting = Setting::of(&RawConfig::default().check().unwrap());
    let tell = |setting: &Setting| {
        let mut told = Vec::new();
        let options = Options { seed: 5, skip: None };
        let found = replay(&logs("h.delays", &text), setting, &options, &mut |n| told.push(n));
        assert!(told.is_empty(), "too few beats to talk of");
        found
    };
    assert_eq!(tell(&setting), tell(&setting));
    let [hasty, patient] = [1e2, 1e6].map(|cost| tell(&setting.with_cost(cost)).remove(0));
    assert!(hasty.tally.mistakes > patient.tally.mistakes, "{hasty:?}");
    assert!(hasty.tally.mean_s() < patient.tally.mean_s());
    // A tenth of five and a half hours was not measured.
    assert!((17_990..=18_010).contains(&hasty.beats), "{}", hasty.beats);
}

#[test]
fn the_json_names_settings_hosts_and_figures() {
    let logs = logs("h.delays", "1\nlost\n1\n");
    let names = ["now", "set 1"].map(|n| Named { name: n.to_owned(), what: "x".to_owned() });
    let outcomes =
        [fixed(500), fixed(5_000)].map(|s| replay(&logs, &s, &ALL, &mut |_| {})).to_vec();
    let report = report(names.to_vec(), &["h"], &outcomes);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["settings"][1]["name"], "set 1");
    let result = &json["hosts"][0]["results"][0];
    assert_eq!(
        (&result["beats"], &result["lost"], &result["mistakes"]),
        (&3.into(), &1.into(), &1.into())
    );
    for key in [
        "setting",
        "detection_mean_ms",
        "detection_p50_ms",
        "detection_p99_ms",
        "mistakes_per_host_day",
        "mistake_mean_ms",
        "accuracy_ratio",
        "watched_s",
    ] {
        assert!(!result[key].is_null(), "{key} in {json}");
    }
    assert!(json["all"][1]["mistake_mean_ms"].is_null(), "there was no mistake");
    // One host needs no sum.
    assert_eq!(report.rows().len(), 2);
}

/// A detector that is judged every 10 ms and before each arrival, as a shard's would be, and one that is
/// shown the recording of it afterwards suspect the same hosts before the same beats.
#[test]
fn a_recording_makes_the_suspicions_that_were_made_live() {
    let setting = Setting::of(&RawConfig::default().check().unwrap()).with_cost(300.0);
    let mut rng = StdRng::seed_from_u64(11);
    // Arrivals in µs of three hosts, each with a clock of its own.
    let (mut beats, mut text) = (Vec::new(), format!("{HEADER}\n"));
    for host in 0..3u64 {
        let mut latest = 0;
        for k in 1..=5_000u32 {
            let sent = u64::from(k) * 1_000_000 + rng.random_range(0..100_000) + host * 333_000;
            let delay = match rng.random_range(0..100u32) {
                0 => None,
                1 => Some(rng.random_range(100_000..3_000_000)),
                _ => Some(rng.random_range(1_000..9_000)),
            };
            let at = delay.map(|d| sent + d).filter(|at| *at > latest);
            latest = at.unwrap_or(latest);
            beats.push((at, host, k, sent));
        }
    }
    beats.sort_by_key(|(at, host, k, sent)| (at.unwrap_or(*sent), *host, *k));

    let knobs = AllKnobs {
        default: setting.knobs,
        overrides: vec![],
        group_labels: vec![],
        classes: vec![],
    };
    let base = 50_000_000;
    let start = Instant::from_micros(base);
    let mut live = Detector::new(setting.settings, &knobs, ALL.seed, start);
    let slots: Vec<u32> = (0..3).map(|i| live.register(stranger(i), start).unwrap()).collect();
    let (mut ended, mut now) = (Vec::new(), start);
    for (at, host, k, sent) in beats {
        let sent = sent + host * 7_000_000_000;
        let at = at.map(|at| Instant::from_micros(base + at));
        let arrived = at.map_or_else(String::new, |at| at.as_micros().to_string());
        text += &format!("host-{host},{k},{sent},1000000,{arrived}\n");
        let Some(at) = at else { continue };
        let before = Instant(at.0 - 1);
        while now < before {
            now = (now + Duration::from_millis(10)).min(before);
            live.judge(now, now, now, &mut Vec::new());
        }
        let stamp = Stamp {
            boot: Boot(1),
            seq: Seq(k),
            sent: Instant::from_micros(sent),
            gap: Duration::from_secs(1),
            epoch: Epoch(1),
        };
        let from = SocketAddr::from(([127, 0, 0, 1], 1));
        let proof = Proof {
            stamp: &stamp,
            arrival: at,
            from,
            late_ms: 0,
            load: None,
            asked: false,
            rebase: false,
        };
        if live.observe(slots[host as usize], &proof, &mut Vec::new()).mistake.is_some() {
            ended.push((host as usize, 0, k));
        }
        now = at;
    }
    let (_, mut replayed) = run(&logs("live.csv", &text), &setting, &ALL, &mut |_| {});
    assert!(ended.len() > 20, "{} suspicions", ended.len());
    ended.sort_unstable();
    replayed.sort_unstable();
    assert_eq!(replayed, ended);
}
