//! The values of the eBPF maps. Fixed-width integers only, no padding, sizes asserted: both sides
//! are compiled by different compilers for different machines and must see the same bytes.

use crate::{
    remote::Address,
    window::{ACTIVE_NS, PERIODS, WHOLE, first_of, period},
};

/// Limits that may hold one socket at the same time (a process in a unit of a user …).
pub const MAX_NESTED: usize = 4;

/// Limits that may be in force on a host at the same time.
pub const MAX_LIMITS: u32 = 8192;

/// Processes that may be limited at the same time.
pub const MAX_PROCESSES: u32 = 65_536;

/// Top bit of a limit's id: the id belongs to a limit narrower than a cgroup (a process, a
/// connection), and is no cgroup id. The bits below it say of which packets it is: [`crate::remote::SELECTIVE`].
pub const NARROW: u64 = 1 << 63;

/// Index of the upload entry in the two-element map values.
pub const UPLOAD: usize = 0;
/// Index of the download entry in the two-element map values.
pub const DOWNLOAD: usize = 1;

/// What was asked for in one direction of a limit. Map `CGROUP_CONFIGS`, as `[_; 2]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupThrottleConfig {
    /// Key of this entry: a cgroup id, or an id with [`NARROW`] set.
    pub cgroup_id: u64,
    /// Bytes of the IP layer a second; 0: this direction is not limited.
    pub rate_bps: u64,
    /// Largest credit an idle limit saves up, in bytes.
    pub burst_size: u64,
    /// Process the limit was set on, in the initial PID namespace; 0: none.
    pub pid: u32,
    /// Download: class of the limit in our queue, `CLASS_MAJOR` or `TIMED_MAJOR << 16 | minor`; 0: it has none, and is held
    /// by its bucket alone.
    pub class_id: u32,
    /// Download: delay that the queue may have, in microseconds, to which the advertised windows are cut;
    /// 0: windows are left as they are.
    pub queue_us: u32,
    /// Reserved, zero.
    pub flags: u32,
}

/// Major number of the classes of our queues. A packet at the socket whose priority has it came through one.
pub const CLASS_MAJOR: u32 = 0xc4ad;

/// The same where packets carry the time at which they leave the queue: all limits were charged when they came to it,
/// and are not asked again at the socket.
pub const TIMED_MAJOR: u32 = 0xc4ae;

/// What carries a later time than this from now the queue drops, ns. More than a queue ever holds.
pub const HORIZON_NS: u64 = 4_000_000_000_000;

/// What the connections of a limit weigh that acknowledged something lately. Map `CGROUP_FLOWS`; see
/// [`crate::window::PERIODS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActiveFlows {
    /// One word a period, by its number modulo their count.
    pub periods: [u64; PERIODS],
}

impl ActiveFlows {
    /// Says that `flows` connections were active just before `now_ns`: until they have had time to count themselves,
    /// no fewer share the limit.
    pub fn expect(&mut self, flows: u32, now_ns: u64) {
        let now = period(now_ns);
        let mut say = |period: u32| {
            self.periods[period as usize % PERIODS] = first_of(period, flows * WHOLE);
        };
        say(now.wrapping_sub(1));
        if now_ns % ACTIVE_NS > ACTIVE_NS / 2 {
            // The rest of this period is short. Those that count themselves in it are counted twice.
            say(now);
        }
    }
}

/// What is remembered of a limited connection's windows (`SK_STORAGE` map `WINDOWS`). Unlike the tag it is
/// not inherited from the listener.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowWindow {
    /// The lowest limit under which `edge` was advertised; 0: there is no edge yet.
    pub limit: u64,
    /// Bytes a second of the limit at that time.
    pub rate_bps: u64,
    /// When `period` began for the connection, CLOCK_MONOTONIC ns.
    pub since_ns: u64,
    /// Right edge that was advertised last.
    pub edge: u32,
    /// Shortest round trip seen, in microseconds; 0: none yet.
    pub min_rtt_us: u32,
    /// Period in which the connection was last counted as active.
    pub period: u32,
    /// What was acknowledged when that began, a sequence number.
    pub acked: u32,
    /// [`crate::window::Weights`] in each of its limits, by their place in the tag; 0: none yet.
    pub weights: [u32; MAX_NESTED],
}

/// One direction's bucket. Map `CGROUP_BUCKETS`, as `[_; 2]`.
///
/// The tokens of the classic algorithm are not stored: they follow from the virtual time
/// (see [`crate::bucket`]), which is the one word that changes with a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second; 0: this direction is not limited.
    pub rate_bps: u64,
    /// Virtual time (the classic `last_update_ns`): when the bucket will be, or was, exactly empty of
    /// debt and credit, in ticks of 1/64 ns since `epoch_ns`.
    pub virtual_time: u64,
    /// `capacity` as ticks at `rate_bps`.
    pub capacity_ticks: u64,
    /// Zero of the virtual time, CLOCK_MONOTONIC ns.
    pub epoch_ns: u64,
    /// Bytes let through since the limit was set. Here, with what else every packet needs, and not in
    /// [`ThrottleStats`]: another look-up would be a good part of what a packet costs.
    pub bytes_passed: u64,
    /// Packets on the wire (segments, not GSO buffers) let through.
    pub packets_passed: u64,
    /// Upload: the pacing rate that all flows share, IP bytes/s (see [`crate::pacing`]); 0: none is paced.
    pub level: u64,
    /// CLOCK_MONOTONIC ns of the last look.
    pub level_at_ns: u64,
    /// Time between two looks at the level, µs.
    pub level_period_us: u32,
    /// Looks in a row that found the flows pausing ([`crate::pacing::Next::pauses`]).
    pub level_pauses: u16,
    /// Not 0: the last look found some flow in want of more ([`crate::pacing::Next::in_want`]).
    pub level_in_want: u16,
    /// Download: [`CgroupThrottleConfig::class_id`].
    pub class_id: u32,
    /// Download, with a class of [`TIMED_MAJOR`]: bytes that may wait; else 0.
    pub room: u32,
    /// Packets that came through our queue: counted among those let through too.
    pub packets_delayed: u64,
    /// Bytes passed at the last look.
    pub level_passed: u64,
    /// Debt up to which small TCP packets still pass, in ticks at `rate_bps`.
    pub small_ticks: u64,
    /// Debt up to which packets that open or close a TCP connection still pass, in ticks at `rate_bps`.
    pub urgent_ticks: u64,
    /// Virtual time of the slice for what may pass although the bucket is in debt (see
    /// [`crate::bucket::BESIDE_SHIFT`]).
    pub beside_time: u64,
    /// Largest credit, in bytes.
    pub capacity: u64,
}

/// New figures for a bucket in use, the packet that `change_bucket` is run with. A bucket is never
/// written over by user space: programs in flight may be charging it, and the element that a map
/// frees when it replaces one is the next one it hands out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketChange {
    /// Which limit.
    pub id: u64,
    /// [`UPLOAD`] or [`DOWNLOAD`].
    pub direction: u64,
    /// To be added to the virtual time, wrapping.
    pub shift: u64,
    /// As it shall be; its virtual time and epoch are not looked at.
    pub bucket: TokenBucket,
}

/// What became of those packets of one direction that did not just pass, since the limit was set. Map
/// `CGROUP_STATS`, as `[_; 2]`. Bytes are IP bytes as on the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottleStats {
    /// Packets refused; on upload TCP keeps and sends them later.
    pub packets_dropped: u64,
    /// Bytes refused.
    pub bytes_dropped: u64,
    /// Packets marked, or that told the other side to slow down: whose advertised window was lowered.
    pub packets_marked: u64,
}

/// What a socket carries (`SK_STORAGE` map `TAGS`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// Process that owns the socket.
    pub tgid: u32,
    /// `TAG_*` bits.
    pub flags: u32,
    /// [`ProcessEntry::born`] of the owner: tells it from a later process of the same id.
    pub born: u64,
    /// [`State::epoch`] at which `limits` was resolved.
    pub epoch: u64,
    /// Ids of the limits that hold this socket; zero ends the list.
    pub limits: [u64; MAX_NESTED],
    /// Device of which the owner was told in this epoch that packets for this socket arrive there; 0: of none.
    pub told_device: u32,
    /// The same of the last epoch in which it was told of one.
    pub last_device: u32,
    /// Of a TCP connection: which of `limits` are about traffic with its far end, the first one in bit 0; with
    /// [`APPLIES_KNOWN`]. 0: not found out yet.
    pub applies: u32,
    /// 1: the last packet received had not been in the queue; 0: it had, or there was none.
    pub past_queue: u32,
    /// Upload, under one limit: the debt of its bucket that the last packet which passed found, in ticks; below zero: credit.
    pub found_ticks: i64,
}

/// [`Tag::applies`] has been found out.
pub const APPLIES_KNOWN: u32 = 1 << 31;

/// Several processes with different limits hold the socket: whoever used it last owns it.
pub const TAG_SHARED: u32 = 1;
/// Set on a listening socket. An accepted socket inherits the bit with the tag: as long as it has it
/// nobody used it yet.
pub const TAG_LISTENER: u32 = 2;
/// The owner was told that an accepted socket of unclear ownership is being used.
pub const TAG_TOLD: u32 = 4;

/// How a TCP flow is paced by us (`SK_STORAGE` map `FLOWS`, which an accepted socket does not inherit).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The level that was last applied to it, IP bytes/s; 0: it is not paced by us.
    pub level: u64,
    /// The cap that the application asked for, payload bytes/s; `u64::MAX`: none. It comes back when the limit ends.
    pub saved: u64,
    /// 1: it follows the level by itself, at every round trip.
    pub follows: u64,
    /// The cap that we set last, payload bytes/s.
    pub set: u64,
    /// The one before: the owner writes this record first and sets the cap after.
    pub before: u64,
    /// Segments that may be under way ([`crate::pacing::most_under_way`]); 0: as many as without us.
    pub window: u32,
    /// The same, as it was set last.
    pub window_set: u32,
    /// What the congestion window was held to before (by a route), in segments; `i32::MAX` and more: to nothing.
    pub window_found: u32,
    /// 0.
    pub reserved: u32,
}

impl Flow {
    /// Takes note of the cap that is found on the socket: one that we did not set is what the application asks for
    /// by now.
    #[inline(always)]
    pub fn notice(&mut self, found: u64) {
        if found != self.set && found != self.before {
            self.saved = found;
        }
    }

    /// Writes down a level, 0 for none, and the cap for it; `ours`: what the level allows, payload bytes/s. Returns
    /// the cap.
    #[inline(always)]
    pub fn apply(&mut self, level: u64, ours: u64) -> u64 {
        let cap = if level == 0 || self.saved < ours { self.saved } else { ours };
        self.level = level;
        self.before = self.set;
        self.set = cap;
        cap
    }

    /// Writes down how many segments are to be under way, 0 for what it was. Returns whether that has to be set: what is
    /// nearly so stays.
    #[inline(always)]
    pub fn wish(&mut self, segments: u32) -> bool {
        let set = self.window_set;
        let near = segments != 0 && set != 0 && segments.abs_diff(set) <= set / 4;
        self.window = if near { set } else { segments };
        self.window != set
    }

    /// Writes down that the wish is granted; `found`: to how many segments the congestion window is held now. Returns what
    /// to set.
    #[inline(always)]
    pub fn grant(&mut self, found: u32) -> u32 {
        if self.window_set == 0 {
            // One that is what we want is ours: a note of it was lost.
            self.window_found =
                if found == self.window { i32::MAX as u32 } else { found.min(i32::MAX as u32) };
        }
        self.window_set = self.window;
        if self.window == 0 || self.window_found < self.window { self.window_found } else { self.window }
    }
}

/// A device by which packets of an upload limit leave that nothing paces, and that are too much. Map `DEPARTURES`:
/// [`DEVICE_KEEPS`] or not. The programs ask by an entry of 0, the owner answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Departure {
    /// Key of the limit.
    pub limit: u64,
    /// Number of the device in the namespace of the limit's processes.
    pub device: u32,
    /// 0.
    pub reserved: u32,
}

/// The device has fq: a packet stays there until the time that it carries.
pub const DEVICE_KEEPS: u32 = 1;

/// A process that is limited. Map `PROCESSES`, keyed by its tgid in the initial PID namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessEntry {
    /// CLOCK_MONOTONIC ns at which the entry was made. It stays, with no limits, until the process ends.
    pub born: u64,
    /// Ids of its limits; zero ends the list.
    pub limits: [u64; MAX_NESTED],
}

/// Words that every program reads. Map `STATE`, one entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Grows with every change of the set of limits; a tag of an older epoch resolves itself again.
    pub epoch: u64,
    /// CLOCK_MONOTONIC ns past which everything passes: the owner renews it while it lives.
    pub lease_deadline_ns: u64,
}

/// Failures that the programs can only count. Map `LOST`, one entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Children of limited processes that found no room in `PROCESSES`.
    pub processes: u64,
    /// Sockets of limited processes that could not be tagged.
    pub sockets: u64,
}

/// Entry of the ring buffer `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `EVENT_*`.
    pub kind: u32,
    /// The process, by its tgid in the initial PID namespace.
    pub tgid: u32,
    /// [`EVENT_DEVICE`]: number of the device in the socket's network namespace; else 0.
    pub device: u32,
    /// Zero.
    pub pad: u32,
}

/// A limited process ended.
pub const EVENT_EXIT: u32 = 1;
/// A connection accepted from a shared listener of this process carries traffic, and it is not known
/// yet who holds it.
pub const EVENT_ACCEPTED: u32 = 2;
/// Packets of a socket whose download is limited arrive at a device without passing our queue.
pub const EVENT_DEVICE: u32 = 3;

/// A process came under other limits than before by what it is: its open sockets must be tagged, and may be
/// paced no more.
pub const EVENT_CHANGED: u32 = 4;

/// One line of the socket iterator: an open IPv4 or IPv6 socket of a limited process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketRecord {
    /// Process and descriptor through which the iterator met it.
    pub tgid: u32,
    /// File descriptor number in that process.
    pub fd: u32,
    /// Address of the kernel's socket: the same socket under another descriptor has the same one.
    pub socket: u64,
    /// `RECORD_*` bits.
    pub flags: u32,
    /// IP protocol number (6 TCP, 17 UDP, 262 MPTCP …).
    pub protocol: u32,
    /// Payload bytes the peer acknowledged since the socket was made; TCP only.
    pub bytes_acked: u64,
    /// Payload bytes received in order since the socket was made; TCP only.
    pub bytes_received: u64,
    /// [`Flow::level`] of the socket.
    pub level: u64,
    /// Inode number of the socket's network namespace.
    pub namespace: u32,
    /// Number of the device, in that namespace, at which its last packets arrived; 0: not known.
    pub device: u32,
    /// The peer's address; zero: it is not connected.
    pub remote: Address,
    /// The peer's port.
    pub remote_port: u32,
    /// Zero.
    pub pad: u32,
}

/// The socket carried no tag, or one that lacked a limit of its process, until now.
pub const RECORD_WAS_UNTAGGED: u32 = 1;
/// The socket is shared with a process that has other limits.
pub const RECORD_SHARED: u32 = 2;
/// The socket listens.
pub const RECORD_LISTENER: u32 = 4;
/// The flow follows the level of its limits by itself.
pub const RECORD_FOLLOWS: u32 = 8;
/// The socket has advertised a window that a limit of its process lowered, or would have.
pub const RECORD_LOWERED: u32 = 16;

/// Processes that can be told apart by the monitor at the same time; what others move is [`OTHER`]'s.
pub const MAX_COUNTED: u32 = 65_536;

/// A process, told from any other, also from a later one of the same id. Key of map `TOTALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CountKey {
    /// Its tgid in the initial PID namespace; 0: nobody, see [`OTHER_KEY`] and [`KERNEL_KEY`].
    pub tgid: u32,
    /// Zero.
    pub reserved: u32,
    /// When its main thread started, CLOCK_BOOTTIME ns.
    pub start_ns: u64,
}

/// Owner of a socket of which nobody knows whose it is.
pub const OTHER_KEY: CountKey = CountKey { tgid: 0, reserved: 0, start_ns: 0 };
/// Owner of the kernel's own sockets.
pub const KERNEL_KEY: CountKey = CountKey { tgid: 0, reserved: 0, start_ns: 1 };

/// Bytes of a process whose sockets are gone, or were handed on; and who it was. Map `TOTALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessCount {
    /// IP bytes received, as on the wire. May be less than zero for a moment, wrapping.
    pub rx_bytes: u64,
    /// The same, sent.
    pub tx_bytes: u64,
    /// Id of its cgroup; 0: unknown.
    pub cgroup: u64,
    /// Its parent.
    pub parent: u32,
    /// Its real user.
    pub uid: u32,
    /// Its name, zero-ended; empty: unknown.
    pub comm: [u64; 2],
}

/// Who owns a socket (`SK_STORAGE` map `OWNERS`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOwner {
    /// The process.
    pub process: CountKey,
    /// Address of the socket that the process was found to own. Another one's: this socket was accepted, has
    /// inherited the entry from its listener, and was used by nobody yet.
    pub socket: u64,
    /// `PART` bits; 0: it is no part of a multipath connection, or inherited the entry from one.
    pub part: u64,
}

/// A part of a multipath connection: it belongs to who owns the whole.
pub const PART: u64 = 1;
/// Whoever owns the whole has used it.
pub const PART_USED: u64 = 2;

/// What a socket has moved (`SK_STORAGE` map `COUNTS`, which an accepted socket does not inherit).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketCount {
    /// IP bytes received, as on the wire, since they were last given to its owner. May be less than zero for
    /// a moment, wrapping.
    pub rx_bytes: u64,
    /// The same, sent.
    pub tx_bytes: u64,
    /// What its owners were given before.
    pub past_rx_bytes: u64,
    /// The same, sent.
    pub past_tx_bytes: u64,
    /// 1: a part of a multipath connection.
    pub is_part: u64,
}

/// Index in map `SPARE`: bytes of ended sockets of the kernel's own.
pub const KERNEL: u32 = 0;
/// Index in map `SPARE`: bytes of ended sockets of unknown owners, and of processes for which there was no room.
pub const OTHER: u32 = 1;

/// Bytes that belong to no process's entry. Map `SPARE`, two entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpareCount {
    /// IP bytes received.
    pub rx_bytes: u64,
    /// IP bytes sent.
    pub tx_bytes: u64,
    /// How often there was no room for a process, or for a socket.
    pub overflows: u64,
}

/// A line of the iterator over counted sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountRecord {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// Who owns it.
    pub owner: CountKey,
    /// Its bytes.
    pub count: SocketCount,
    /// Own address, as IPv6 (IPv4: the first four bytes).
    pub local: [u64; 2],
    /// The peer's.
    pub remote: [u64; 2],
    /// Own port.
    pub local_port: u16,
    /// The peer's, big-endian.
    pub remote_port: u16,
    /// AF_INET or AF_INET6.
    pub family: u16,
    /// IP protocol number.
    pub protocol: u16,
    /// Its state, as in the kernel's include/net/tcp_states.h.
    pub state: u32,
    /// Smoothed round trip, eighths of a µs; TCP only.
    pub srtt: u32,
    /// Segments sent again; TCP only.
    pub retransmits: u32,
    /// 1: a descriptor of some process leads to it.
    pub has_file: u32,
    /// 1: a part of a multipath connection.
    pub is_part: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<CountKey>() == 16);
    assert!(size_of::<ProcessCount>() == 48);
    assert!(size_of::<SocketOwner>() == 32);
    assert!(size_of::<SocketCount>() == 40);
    assert!(size_of::<SpareCount>() == 24);
    assert!(size_of::<CountRecord>() == 128);

    assert!(size_of::<CgroupThrottleConfig>() == 40);
    assert!(size_of::<ActiveFlows>() == 32);
    assert!(size_of::<FlowWindow>() == 56);
    assert!(size_of::<TokenBucket>() == 128);
    assert!(size_of::<ThrottleStats>() == 24);
    assert!(size_of::<Tag>() == 80);
    assert!(size_of::<Flow>() == 56);
    assert!(size_of::<Departure>() == 16);
    assert!(size_of::<ProcessEntry>() == 40);
    assert!(size_of::<State>() == 16);
    assert!(size_of::<Lost>() == 16);
    assert!(size_of::<Event>() == 16);
    assert!(size_of::<BucketChange>() == 152);
    assert!(size_of::<SocketRecord>() == 80);
};

#[cfg(feature = "user")]
mod pod {
    use super::*;
    // SAFETY: repr(C), integers only, sizes above leave no room for padding; any bytes are a value.
    unsafe impl aya::Pod for CgroupThrottleConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for TokenBucket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ThrottleStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ActiveFlows {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Tag {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Departure {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowWindow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ProcessEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for State {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Lost {}
    // SAFETY: as above.
    unsafe impl aya::Pod for CountKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ProcessCount {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SpareCount {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flow under a level that allows `ours`.
    fn paced(saved: u64, ours: u64) -> Flow {
        let mut flow = Flow::default();
        flow.notice(saved);
        flow.apply(1, ours);
        flow
    }

    #[test]
    fn the_applications_cap_is_never_raised() {
        assert_eq!(paced(2_000, 5_000).set, 2_000);
        assert_eq!(paced(u64::MAX, 5_000).set, 5_000);
    }

    #[test]
    fn what_the_application_sets_later_counts() {
        let mut flow = paced(u64::MAX, 5_000);
        flow.notice(5_000);
        assert_eq!(flow.saved, u64::MAX, "our own cap");
        flow.notice(2_000);
        assert_eq!((flow.apply(1, 6_000), flow.apply(0, 0)), (2_000, 2_000));
    }

    #[test]
    fn a_cap_that_is_about_to_be_set_does_not_make_the_last_one_the_applications() {
        let mut flow = paced(u64::MAX, 5_000);
        flow.apply(2, 6_000);
        flow.notice(5_000);
        assert_eq!(flow.saved, u64::MAX);
    }
}
