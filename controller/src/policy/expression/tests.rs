use super::*;
use proptest::prelude::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn holds(text: &str, pairs: &[(&str, &str)]) -> bool {
    Expression::parse(text).unwrap_or_else(|e| panic!("{text}: {e}")).holds(&labels(pairs))
}

#[test]
fn every_form_means_what_the_table_says() {
    let db = [("pool", "db"), ("zone", "z1"), ("name", "web-17.example")];
    for text in [
        "pool",
        "pool = db",
        "pool == db",
        "pool='db'",
        "pool != web",
        "pool in (db, cache)",
        "pool in(web,db)",
        "pool not in (web)",
        "rack not in (r1)",
        "rack != r1",
        "not rack",
        "rack !~ r*",
        "name ~ web-*",
        "name ~ \"*.example\"",
        "name ~ web-1?.example",
        "name ~ *",
        "name !~ web",
        "pool = db and zone != z3 and not canary",
        "pool = web or zone = z1",
        "pool = web and zone = z1 or pool = db",
        "not (pool = web or rack)",
        "not not pool",
        "\"pool\" = \"db\"",
        "(((pool = db)))",
    ] {
        assert!(holds(text, &db), "{text}");
    }
    for text in [
        "canary",
        "pool = DB",
        "pool != db",
        "pool in (web)",
        "pool not in (db, web)",
        "rack in (r1)",
        "rack ~ *",
        "name ~ web",
        "name !~ web-*",
        "not pool",
        "pool = db and zone = z3",
        "pool = db and (zone = z3 or rack)",
        "not (pool = db or rack)",
    ] {
        assert!(!holds(text, &db), "{text}");
    }
    assert!(holds("\"in\" = 'it\\'s'", &[("in", "it's")]));
}

#[test]
fn an_error_points_at_the_column_and_says_what_would_be_right() {
    let long = format!("a in ({})", vec!["b"; TERMS_MAX].join(","));
    let deep = format!("{}a", "not ".repeat(DEPTH_MAX + 1));
    let brackets = "(".repeat(DEPTH_MAX + 1);
    let endless = "a".repeat(LEN_MAX + 1);
    for (text, column, wanted) in [
        ("", 1, "expected a label"),
        ("pool =", 7, "expected a value"),
        ("pool = db zone = z1", 11, "`and`, `or`"),
        ("pool = db && zone", 11, "write `and`"),
        ("pool | zone", 6, "write `or`"),
        ("!pool", 1, "write `not`"),
        ("pool in db", 9, "expected `(`"),
        ("pool in (db", 12, "`,` or `)`"),
        ("pool in ()", 10, "a value"),
        ("pool (db)", 6, "`in`"),
        ("(pool = db", 11, "`)`"),
        ("pool = db)", 10, "closes nothing"),
        ("and pool", 1, "in quotes"),
        ("pool = \"db", 8, "never closed"),
        ("pool = \"d\\b\"", 11, "before a quote"),
        ("pool = d*", 8, "behind `~`"),
        ("p* = d", 1, "behind `~`"),
        ("zóne = ü and", 13, "expected a label"),
        ("a # b", 3, "quotes"),
        ("\"\" = b", 1, "has a name"),
        (&long, 517, "256"),
        (&deep, 133, "32"),
        (&brackets, 33, "32"),
        (&endless, 1, "2000"),
    ] {
        let error = Expression::parse(text).unwrap_err();
        assert_eq!(error.column, column, "{text}: {error}");
        assert!(error.to_string().contains(wanted), "{text}: {error}");
    }
}

#[test]
fn an_objection_names_the_part_that_fails_and_what_the_host_has() {
    let e =
        Expression::parse("pool in (db, cache) and zone != z3 and not (canary or old)").unwrap();
    let why = |pairs: &[(&str, &str)]| e.objection(&labels(pairs));
    assert_eq!(why(&[("pool", "db"), ("zone", "z1")]), None);
    assert_eq!(
        why(&[("pool", "web")]).unwrap(),
        "`pool in (db, cache)` does not hold: pool is `web`"
    );
    assert_eq!(
        why(&[("zone", "z1")]).unwrap(),
        "`pool in (db, cache)` does not hold: it has no label pool"
    );
    assert_eq!(
        why(&[("pool", "db"), ("zone", "z3")]).unwrap(),
        "`zone != z3` does not hold: zone is `z3`"
    );
    assert_eq!(
        why(&[("pool", "db"), ("canary", "1")]).unwrap(),
        "`not (canary or old)` does not hold: canary is `1`, it has no label old"
    );
    assert_eq!(e.labels().into_iter().collect::<Vec<_>>(), ["canary", "old", "pool", "zone"]);
}

#[test]
fn patterns_cost_no_more_than_the_product_of_their_lengths() {
    let pattern = format!("a ~ \"{}b\"", "*a".repeat(900));
    assert!(!holds(&pattern, &[("a", &"a".repeat(255))]));
}

/// A condition as a tree of its own, written out with brackets, and judged by looking.
#[derive(Clone, Debug)]
enum Naive {
    Has(u8),
    Is(u8, u8),
    In(u8, Vec<u8>),
    Like(u8, String),
    Not(Box<Naive>),
    And(Box<Naive>, Box<Naive>),
    Or(Box<Naive>, Box<Naive>),
}

impl Naive {
    fn text(&self) -> String {
        match self {
            Self::Has(k) => format!("k{k}"),
            Self::Is(k, v) => format!("k{k} = ab{v}"),
            Self::In(k, vs) => {
                let vs: Vec<String> = vs.iter().map(|v| format!("ab{v}")).collect();
                format!("k{k} in ({})", vs.join(", "))
            }
            Self::Like(k, pattern) => format!("k{k} ~ \"{pattern}\""),
            Self::Not(a) => format!("not ({})", a.text()),
            Self::And(a, b) => format!("({}) and ({})", a.text(), b.text()),
            Self::Or(a, b) => format!("({}) or ({})", a.text(), b.text()),
        }
    }

    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = |k: &u8| labels.get(&format!("k{k}"));
        match self {
            Self::Has(k) => value(k).is_some(),
            Self::Is(k, v) => value(k) == Some(&format!("ab{v}")),
            Self::In(k, vs) => vs.iter().any(|v| value(k) == Some(&format!("ab{v}"))),
            Self::Like(k, pattern) => {
                value(k).is_some_and(|v| fits(pattern.as_bytes(), v.as_bytes()))
            }
            Self::Not(a) => !a.holds(labels),
            Self::And(a, b) => a.holds(labels) & b.holds(labels),
            Self::Or(a, b) => a.holds(labels) | b.holds(labels),
        }
    }
}

/// Tries every length that each star may take.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|n| fits(rest, &text[n..])),
        Some((c, rest)) => {
            text.split_first().is_some_and(|(t, after)| (*c == b'?' || c == t) && fits(rest, after))
        }
    }
}

fn naive() -> impl Strategy<Value = Naive> {
    let leaf = prop_oneof![
        (0..4u8).prop_map(Naive::Has),
        (0..4u8, 0..3u8).prop_map(|(k, v)| Naive::Is(k, v)),
        (0..4u8, prop::collection::vec(0..3u8, 1..3)).prop_map(|(k, v)| Naive::In(k, v)),
        (0..4u8, "[ab0-2*?]{0,6}").prop_map(|(k, p)| Naive::Like(k, p)),
    ];
    leaf.prop_recursive(5, 40, 2, |inner| {
        let pair = (inner.clone(), inner.clone());
        prop_oneof![
            inner.prop_map(|a| Naive::Not(Box::new(a))),
            pair.clone().prop_map(|(a, b)| Naive::And(Box::new(a), Box::new(b))),
            pair.prop_map(|(a, b)| Naive::Or(Box::new(a), Box::new(b))),
        ]
    })
}

proptest! {
    #[test]
    fn it_holds_where_the_naive_one_does(
        naive in naive(),
        has in prop::collection::btree_map(0..4u8, 0..3u8, 0..4),
    ) {
        let labels = has.into_iter().map(|(k, v)| (format!("k{k}"), format!("ab{v}"))).collect();
        let text = naive.text();
        prop_assume!(text.len() <= LEN_MAX);
        let ours = Expression::parse(&text).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
        prop_assert_eq!(ours.holds(&labels), naive.holds(&labels), "{}", text);
        prop_assert_eq!(ours.objection(&labels).is_none(), naive.holds(&labels));
    }

    #[test]
    fn any_text_is_read_or_refused_with_a_column_that_is_in_it(text in "[a-c =!~()*?,'\"\\\\ünotrdi ]{0,60}") {
        match Expression::parse(&text) {
            Ok(e) => {
                let all = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
                prop_assert_eq!(e.objection(&all).is_none(), e.holds(&all));
            }
            Err(e) => prop_assert!((1..=text.chars().count() + 1).contains(&e.column)),
        }
    }
}
