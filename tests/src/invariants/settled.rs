//! When the world has healed, live hosts are simply heard: nobody is challenged for ever.

use super::Ledger;

impl Ledger {
    /// Challenges sent in the last half minute of a run.
    pub fn check_settled(&mut self, challenges: u64) {
        if challenges > 0 {
            let seen = format!("{challenges} challenges in the last 30 s of a healed world");
            self.broken("settled", seen);
        }
    }
}
