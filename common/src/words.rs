//! Words for people.

/// `1 host`, `2 hosts`, `3 deliveries`, `4 addresses`.
pub fn count(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {}", many(one)) }
}

/// More than one of them.
fn many(one: &str) -> String {
    match one.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ if one.ends_with('s') => format!("{one}es"),
        _ => format!("{one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_one_and_all_else_is_many() {
        for (n, one, text) in [
            (0, "host", "0 hosts"),
            (1, "shard", "1 shard"),
            (2, "delivery", "2 deliveries"),
            (1, "delivery", "1 delivery"),
            (3, "key", "3 keys"),
            (2, "address", "2 addresses"),
        ] {
            assert_eq!(count(n, one), text);
        }
    }
}
