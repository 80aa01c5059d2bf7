//! Which host has something to do in which millisecond: a ring of lists, one a tick.
//!
//! Filing and taking cost O(1) a host, whatever the size of the fleet; nobody scans all hosts. An entry
//! is a hint: whoever takes it asks the host whether it is true, so nothing is ever taken out of a list.
//! Lists are lent from a pool, so memory follows the hosts and not the length of the ring.

/// Ticks ahead that can be filed; a power of two.
pub(super) const HORIZON: u32 = 1 << 16;

/// The ring.
#[derive(Debug)]
pub(super) struct Wheel {
    ring: Vec<Vec<u32>>,
    /// The next tick to be taken.
    next: u32,
    pool: Vec<Vec<u32>>,
}

impl Wheel {
    /// A ring whose first tick is 0.
    pub(super) fn new() -> Self {
        Self { ring: vec![Vec::new(); HORIZON as usize], next: 0, pool: Vec::new() }
    }

    /// The tick that [`Self::take`] takes next.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Files a host for a tick; answers the tick for which it was filed, which is a later one if that has
    /// been taken and an earlier one if it is beyond the horizon.
    pub(super) fn file(&mut self, host: u32, tick: u32) -> u32 {
        let tick = tick.clamp(self.next, self.next.saturating_add(HORIZON - 1));
        let list = &mut self.ring[(tick % HORIZON) as usize];
        if list.capacity() == 0
            && let Some(lent) = self.pool.pop()
        {
            *list = lent;
        }
        list.push(host);
        tick
    }

    /// Takes the list of the next tick.
    pub(super) fn take(&mut self) -> Vec<u32> {
        let list = std::mem::take(&mut self.ring[(self.next % HORIZON) as usize]);
        self.next = self.next.saturating_add(1);
        list
    }

    /// Takes an emptied list back.
    pub(super) fn give_back(&mut self, mut list: Vec<u32>) {
        if list.capacity() > 0 {
            list.clear();
            self.pool.push(list);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_in_their_tick_and_in_no_other() {
        let mut wheel = Wheel::new();
        let asked = [(1, 0), (2, 5), (3, 5), (4, HORIZON - 1)];
        for (host, tick) in asked {
            assert_eq!(wheel.file(host, tick), tick);
        }
        let mut came = Vec::new();
        for tick in 0..HORIZON {
            let list = wheel.take();
            came.extend(list.iter().map(|host| (*host, tick)));
            wheel.give_back(list);
        }
        assert_eq!(came, asked);
    }

    #[test]
    fn what_is_late_comes_next_and_what_is_too_far_comes_early() {
        let mut wheel = Wheel::new();
        (0..10).for_each(|_| drop(wheel.take()));
        assert_eq!(wheel.file(1, 3), 10);
        assert_eq!(wheel.take(), [1]);
        assert_eq!(wheel.file(2, 10 * HORIZON), 11 + HORIZON - 1);
        (0..HORIZON - 1).for_each(|_| assert!(wheel.take().is_empty()));
        assert_eq!(wheel.take(), [2]);
    }
}
