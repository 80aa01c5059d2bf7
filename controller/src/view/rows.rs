//! The rows of all hosts: 61 bytes each, in columns, in chunks that never move.
//!
//! What filters ask (state, label set, name) stands in columns of its own, so that a look through a
//! million hosts reads 1 to 13 MB and not all of it. What few hosts have (an incident, a frozen margin,
//! an IPv6 address) stands in tables beside.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};

use heartwatch_common::id::{Boot, Generation, HostId};
use heartwatch_common::time::Wall;

use super::labels::LabelSets;
use super::live::LiveId;
use super::names::Name;
use super::texts::Texts;
use crate::event::{Cause, IncidentId, State};
use crate::store::HostRow;

/// Slots in a chunk.
pub(super) const CHUNK_LEN: usize = 4_096;

/// Where the chunk of a slot ends.
pub(super) fn chunk_end(slot: usize) -> usize {
    (slot / CHUNK_LEN + 1) * CHUNK_LEN
}

/// A moment in six bytes: milliseconds until the year 10889. Below zero is zero.
#[derive(Clone, Copy, Default)]
struct Moment([u16; 3]);

impl Moment {
    fn of(wall: Wall) -> Self {
        let ms = u64::try_from(wall.0).unwrap_or(0).min((1 << 48) - 1);
        Self([ms as u16, (ms >> 16) as u16, (ms >> 32) as u16])
    }

    fn wall(self) -> Wall {
        let [low, middle, high] = self.0.map(i64::from);
        Wall(low | middle << 16 | high << 32)
    }
}

/// A number in five bytes.
#[derive(Clone, Copy, Default)]
struct Five([u8; 5]);

impl Five {
    /// Numbers below this fit: as many changes as a year and a half of 20,000 a second bring.
    const END: u64 = 1 << 40;

    /// Whatever is too large is the largest.
    fn new(n: u64) -> Self {
        let [a, b, c, d, e, ..] = n.min(Self::END - 1).to_le_bytes();
        Self([a, b, c, d, e])
    }

    fn get(self) -> u64 {
        let [a, b, c, d, e] = self.0;
        u64::from_le_bytes([a, b, c, d, e, 0, 0, 0])
    }

    /// How much later than another a moment is, within 34 years; `None`: more, or it is earlier.
    fn later(than: Wall, wall: Wall) -> Option<Self> {
        let ms = u64::try_from(wall.0.checked_sub(than.0)?).ok()?;
        (ms < Self::END).then(|| Self::new(ms))
    }
}

/// How an address is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AddressKind {
    None,
    V4,
    /// IPv4 as an IPv6 socket sees it.
    Mapped,
    /// In the table of IPv6 addresses.
    V6,
}

/// State, cause, kind of address and duplicate in one byte; zero = the slot is free.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tag(u8);

impl Tag {
    fn new(row: &HostRow, address: AddressKind) -> Self {
        let cause = row.cause.map_or(0, |c| c as u8 + 1);
        let duplicate = u8::from(row.duplicate);
        Self((row.state as u8 + 1) | cause << 3 | (address as u8) << 5 | duplicate << 7)
    }

    /// The host's state; `None`: the slot is free.
    pub(super) fn state(self) -> Option<State> {
        State::ALL.get(usize::from(self.0 & 7).wrapping_sub(1)).copied()
    }

    /// Whether two boots answer under its identity.
    pub(super) fn duplicate(self) -> bool {
        self.0 & 0x80 != 0
    }

    fn cause(self) -> Option<Cause> {
        Cause::ALL.get(usize::from(self.0 >> 3 & 3).wrapping_sub(1)).copied()
    }

    fn address(self) -> AddressKind {
        match self.0 >> 5 & 3 {
            0 => AddressKind::None,
            1 => AddressKind::V4,
            2 => AddressKind::Mapped,
            _ => AddressKind::V6,
        }
    }
}

/// Packed, so that no byte is lost between two of them.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
struct Record {
    id: HostId,
    /// The IPv4 address, or the place of the IPv6 address.
    address: u32,
    boot: u32,
    live: LiveId,
    first_seen: Moment,
    /// How much later than `first_seen`, milliseconds, unless it stands in the table of those.
    since: Five,
    changed: Five,
    port: u16,
    generation: u16,
}

const _: () = assert!(size_of::<Record>() == 48, "a host's record has no gaps");

const BLANK: Record = Record {
    id: HostId([0; 16]),
    address: 0,
    boot: 0,
    live: LiveId::NONE,
    first_seen: Moment([0; 3]),
    since: Five([0; 5]),
    changed: Five([0; 5]),
    port: 0,
    generation: 0,
};

struct Chunk {
    tags: Box<[Tag]>,
    sets: Box<[u32]>,
    names: Box<[Name]>,
    records: Box<[Record]>,
}

impl Chunk {
    fn new() -> Self {
        Self {
            tags: vec![Tag::default(); CHUNK_LEN].into(),
            sets: vec![0; CHUNK_LEN].into(),
            names: vec![Name::EMPTY; CHUNK_LEN].into(),
            records: vec![BLANK; CHUNK_LEN].into(),
        }
    }
}

/// Neighbouring slots, in columns.
pub(super) struct Columns<'a> {
    first: u32,
    tags: &'a [Tag],
    sets: &'a [u32],
    names: &'a [Name],
}

impl<'a> Columns<'a> {
    /// Slot after slot: tag, set and name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Tag, u32, Name)> + use<'a> {
        let columns = self.tags.iter().zip(self.sets).zip(self.names);
        (self.first..).zip(columns).map(|(slot, ((tag, set), name))| (slot, *tag, *set, *name))
    }
}

/// The rows.
#[derive(Default)]
pub(super) struct Rows {
    chunks: Vec<Chunk>,
    free: Vec<u32>,
    /// Slots ever used.
    end: usize,
    incidents: HashMap<u32, IncidentId>,
    frozen_ms: HashMap<u32, u64>,
    back_by: HashMap<u32, Wall>,
    /// Since when hosts are in their state that were first seen later, or 34 years before: the wall clock was
    /// set, as that of a machine that boots in 1970.
    since: HashMap<u32, Wall>,
    v6: Vec<SocketAddrV6>,
    v6_free: Vec<u32>,
}

impl Rows {
    /// Slots lie below this.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    fn at(slot: u32) -> (usize, usize) {
        (slot as usize / CHUNK_LEN, slot as usize % CHUNK_LEN)
    }

    /// What says whether there is a host, and how it stands.
    pub(super) fn tag(&self, slot: u32) -> Tag {
        let (chunk, at) = Self::at(slot);
        self.chunks[chunk].tags[at]
    }

    /// Its set of labels.
    pub(super) fn set(&self, slot: u32) -> u32 {
        let (chunk, at) = Self::at(slot);
        self.chunks[chunk].sets[at]
    }

    /// Whether there is a host with this set of labels.
    pub(super) fn has_set(&self, slot: u32, set: u32) -> bool {
        self.tag(slot) != Tag::default() && self.set(slot) == set
    }

    /// Its name.
    pub(super) fn name(&self, slot: u32) -> Name {
        let (chunk, at) = Self::at(slot);
        self.chunks[chunk].names[at]
    }

    /// The columns that filters ask, of the slots from `from` to the end of its chunk.
    pub(super) fn columns(&self, from: usize) -> Columns<'_> {
        let len = CHUNK_LEN.min(self.end - from / CHUNK_LEN * CHUNK_LEN);
        let at = from % CHUNK_LEN..len;
        let chunk = &self.chunks[from / CHUNK_LEN];
        Columns {
            first: from as u32,
            tags: &chunk.tags[at.clone()],
            sets: &chunk.sets[at.clone()],
            names: &chunk.names[at],
        }
    }

    fn record(&self, slot: u32) -> &Record {
        let (chunk, at) = Self::at(slot);
        &self.chunks[chunk].records[at]
    }

    /// Who it is.
    pub(super) fn id(&self, slot: u32) -> HostId {
        self.record(slot).id
    }

    /// Its live cell.
    pub(super) fn live(&self, slot: u32) -> LiveId {
        self.record(slot).live
    }

    /// The number of its last change.
    pub(super) fn changed(&self, slot: u32) -> u64 {
        self.record(slot).changed.get()
    }

    /// A slot for one more host; `None` if there are four billion.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let slot = u32::try_from(self.end).ok()?;
        if self.end == self.chunks.len() * CHUNK_LEN {
            self.chunks.push(Chunk::new());
        }
        self.end += 1;
        Some(slot)
    }

    /// Writes a host's row, its labels apart; `live` is its cell, if that changes.
    pub(super) fn write(
        &mut self,
        slot: u32,
        row: &HostRow,
        live: Option<LiveId>,
        change: u64,
        texts: &mut Texts,
    ) {
        let (chunk, at) = Self::at(slot);
        let old = self.chunks[chunk].tags[at];
        let (kind, address, port) = self.keep_address(slot, old, row.address);
        keep(&mut self.incidents, slot, row.incident);
        keep(&mut self.frozen_ms, slot, row.frozen_ms);
        keep(&mut self.back_by, slot, row.back_by);
        let first_seen = Moment::of(row.first_seen);
        let since = Five::later(first_seen.wall(), row.since);
        keep(&mut self.since, slot, since.is_none().then_some(row.since));
        let chunk = &mut self.chunks[chunk];
        chunk.tags[at] = Tag::new(row, kind);
        let name = Name::take(&row.name, texts);
        std::mem::replace(&mut chunk.names[at], name).release(texts);
        let record = &mut chunk.records[at];
        *record = Record {
            id: row.id,
            address,
            boot: row.boot.0,
            live: live.unwrap_or(record.live),
            first_seen,
            since: since.unwrap_or_default(),
            changed: Five::new(change),
            port,
            generation: row.generation.0,
        };
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let slot = size_of::<Tag>() + size_of::<u32>() + size_of::<Name>() + size_of::<Record>();
        let few = self.incidents.capacity() * size_of::<(u32, IncidentId)>()
            + self.frozen_ms.capacity() * size_of::<(u32, u64)>()
            + (self.back_by.capacity() + self.since.capacity()) * size_of::<(u32, Wall)>()
            + self.v6.capacity() * size_of::<SocketAddrV6>();
        let free = (self.free.capacity() + self.v6_free.capacity()) * size_of::<u32>();
        self.chunks.len() * (CHUNK_LEN * slot + size_of::<Chunk>()) + few + free
    }

    /// Notes which set of labels a host has.
    pub(super) fn set_labels(&mut self, slot: u32, set: u32) {
        let (chunk, at) = Self::at(slot);
        self.chunks[chunk].sets[at] = set;
    }

    /// Empties a slot.
    pub(super) fn clear(&mut self, slot: u32, texts: &mut Texts) {
        let (chunk, at) = Self::at(slot);
        let old = self.chunks[chunk].tags[at];
        self.keep_address(slot, old, None);
        self.incidents.remove(&slot);
        self.frozen_ms.remove(&slot);
        self.back_by.remove(&slot);
        self.since.remove(&slot);
        let chunk = &mut self.chunks[chunk];
        chunk.tags[at] = Tag::default();
        std::mem::replace(&mut chunk.names[at], Name::EMPTY).release(texts);
        chunk.records[at] = BLANK;
        self.free.push(slot);
    }

    fn keep_address(
        &mut self,
        slot: u32,
        old: Tag,
        address: Option<SocketAddr>,
    ) -> (AddressKind, u32, u16) {
        if old.address() == AddressKind::V6 {
            self.v6_free.push(self.record(slot).address);
        }
        match address {
            None => (AddressKind::None, 0, 0),
            Some(SocketAddr::V4(a)) => (AddressKind::V4, a.ip().to_bits(), a.port()),
            Some(SocketAddr::V6(a)) => match a.ip().to_ipv4_mapped() {
                Some(ip) if a.flowinfo() == 0 && a.scope_id() == 0 => {
                    (AddressKind::Mapped, ip.to_bits(), a.port())
                }
                _ => {
                    let place = self.v6_free.pop().unwrap_or_else(|| {
                        self.v6.push(a);
                        (self.v6.len() - 1) as u32
                    });
                    self.v6[place as usize] = a;
                    (AddressKind::V6, place, a.port())
                }
            },
        }
    }

    /// The whole row of a host.
    pub(super) fn read(&self, slot: u32, sets: &LabelSets, texts: &Texts) -> Option<HostRow> {
        let tag = self.tag(slot);
        let state = tag.state()?;
        let r = self.record(slot);
        let ip = Ipv4Addr::from_bits(r.address);
        let mut row = HostRow {
            id: r.id,
            name: self.name(slot).text(texts),
            labels: Default::default(),
            os: String::new(),
            agent_version: String::new(),
            state,
            cause: tag.cause(),
            boot: Boot(r.boot),
            generation: Generation(r.generation),
            address: match tag.address() {
                AddressKind::None => None,
                AddressKind::V4 => Some((ip, r.port).into()),
                AddressKind::Mapped => Some((ip.to_ipv6_mapped(), r.port).into()),
                AddressKind::V6 => self.v6.get(r.address as usize).copied().map(SocketAddr::V6),
            },
            first_seen: r.first_seen.wall(),
            since: match self.since.get(&slot) {
                Some(since) => *since,
                None => Wall(r.first_seen.wall().0 + r.since.get() as i64),
            },
            incident: self.incidents.get(&slot).copied(),
            duplicate: tag.duplicate(),
            frozen_ms: self.frozen_ms.get(&slot).copied(),
            back_by: self.back_by.get(&slot).copied(),
        };
        sets.write(self.set(slot), texts, &mut row);
        Some(row)
    }
}

fn keep<T>(table: &mut HashMap<u32, T>, slot: u32, value: Option<T>) {
    match value {
        Some(value) => drop(table.insert(slot, value)),
        None if table.is_empty() => {}
        None => drop(table.remove(&slot)),
    }
}
