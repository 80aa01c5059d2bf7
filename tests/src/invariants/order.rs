//! Per receiver and host, events arrive in order with rising tokens; a repeat is the same to the byte.

use std::collections::BTreeMap;

use super::Ledger;
use crate::sim::Reception;

impl Ledger {
    /// All that the receivers got, in the order in which they got it.
    pub fn check_order(&mut self, receptions: &[Reception]) {
        let mut bodies = BTreeMap::new();
        let mut tokens = BTreeMap::new();
        for r in receptions {
            let key = (r.receiver.clone(), r.event.to_string());
            if let Some(body) = bodies.get(&key) {
                if *body != &r.body {
                    self.broken("order", format!("{} was repeated with another body", r.event));
                }
                continue;
            }
            bodies.insert(key, &r.body);
            let (Some(host), Some(token)) = (r.host, r.token) else { continue };
            let last = tokens.insert((r.receiver.clone(), host), token);
            if last.is_some_and(|last| last >= token) {
                self.broken("order", format!("{host}: token {token} came after {last:?}"));
            }
        }
    }
}
