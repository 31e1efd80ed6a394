//! A packet at its socket's hook: which limits hold it, and may it pass. And the one way to change a
//! bucket in use.

use core::num::NonZeroU64;

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_ktime_get_ns, bpf_sk_fullsock, bpf_skc_to_mptcp_sock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use chadthrottle_common::{
    abi::{
        BucketChange, CLASS_MAJOR, DEVICE_KEEPS, DOWNLOAD, Departure, EVENT_ACCEPTED, EVENT_DEVICE, Event, MAX_NESTED, TAG_LISTENER,
        TAG_SHARED, TAG_TOLD, TIMED_MAJOR, Tag, ThrottleStats, TokenBucket, UPLOAD,
    },
    bucket::{
        ANSWER, BESIDE_SHIFT, QUESTION, QUEUE_SLACK, SMALL_PACKET, SMALL_SLACK, Word, charge, cost, cost_beside, exceeded, has_room,
        may_be_kept, out_of_debt_ns, ticks,
    },
    pacing::BURST_TICKS,
    remote::SELECTIVE,
    wire::Wire,
};

use crate::{
    atomic::{self, MapWord},
    count::take_back,
    kernel::global,
    maps::{CGROUP_BUCKETS, CGROUP_STATS, DEPARTURES, EVENTS, MPTCP, TAGS, live_state, resolve},
    pacing, packet,
    remote::{self, are_selective},
};

/// Verdicts of cgroup_skb (egress has all of them, ingress the first two).
const DROP: i32 = 0;
const PASS: i32 = 1;
/// TCP keeps the segment; a UDP sender is told that all went well.
const DROP_AND_SLOW_DOWN: i32 = 2;

const IPPROTO_TCP: u32 = 6;
/// State of a listening socket.
pub const TCP_LISTEN: u32 = 10;

/// Number of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

/// What the packet's socket carries. The helpers themselves refuse what is no full socket.
#[inline(always)]
unsafe fn tag_of(socket: *mut bpf_sock) -> Option<&'static mut Tag> {
    // SAFETY: the caller's: a socket from the context.
    unsafe {
        if let Some(tag) = TAGS.get(socket.cast()) {
            return Some(tag);
        }
        // Subflows of MPTCP are the kernel's own sockets; the one the process holds is above them.
        if global::HAVE_MPTCP() == 0 || *MPTCP.get(0)? == 0 {
            return None;
        }
        let above = bpf_skc_to_mptcp_sock(socket.cast());
        if above.is_null() {
            return None;
        }
        let tag = *TAGS.get(above.cast())?;
        // A copy on the subflow makes the next packet cheap, and is what a connection inherits that a
        // listener accepts from a client without MPTCP: that one has no socket above it.
        let own = TAGS.get_or_create(socket.cast())?;
        *own = tag;
        Some(own)
    }
}

/// # Safety
/// `socket` came with the packet's context.
#[inline(always)]
pub unsafe fn is_tcp(socket: *mut bpf_sock) -> bool {
    // SAFETY: the caller's: a socket from the context.
    unsafe {
        let socket = bpf_sk_fullsock(socket);
        !socket.is_null() && (*socket).protocol == IPPROTO_TCP
    }
}

/// Whether it belongs to a listener that several processes share, and none of them has claimed it yet.
#[inline(always)]
fn unclaimed(tag: &Tag) -> bool {
    let flags = TAG_SHARED | TAG_LISTENER;
    tag.flags & flags == flags
}

/// The tag of a socket that limits hold, resolved; `None` when none does.
///
/// # Safety
/// `socket` is one that the verifier knows.
#[inline(always)]
pub unsafe fn held_tag(socket: *mut bpf_sock, epoch: u64) -> Option<&'static mut Tag> {
    // SAFETY: the caller's.
    let tag = unsafe { tag_of(socket) }?;
    resolve(tag, epoch);
    (tag.limits[0] != 0 && !unclaimed(tag)).then_some(tag)
}

/// Tells the owner at which device a socket's packets arrive, when it is another one than before.
#[inline(always)]
fn tell_device(ctx: &SkBuffContext, tag: &mut Tag) {
    // SAFETY: a field of the context.
    let device = unsafe { (*ctx.skb.skb).ifindex };
    if device != tag.told_device && device != LOOPBACK {
        tag.told_device = device;
        let _ = EVENTS.output::<Event>(Event { kind: EVENT_DEVICE, tgid: tag.tgid, device, pad: 0 }, 0);
    }
}

/// A connection from a listener that several processes share, which none has claimed yet: tells the
/// owner, once, so that it looks who holds it.
#[inline(always)]
fn tell_owner(tag: &mut Tag) {
    if tag.flags & TAG_TOLD == 0 {
        tag.flags |= TAG_TOLD;
        let _ = EVENTS.output::<Event>(Event { kind: EVENT_ACCEPTED, tgid: tag.tgid, device: 0, pad: 0 }, 0);
    }
}

/// What one direction, 0 or 1, of a limit did not let pass.
#[inline(always)]
pub fn stats(id: u64, direction: usize) -> Option<*mut ThrottleStats> {
    // SAFETY: a map value of two elements.
    CGROUP_STATS.get_ptr_mut(id).map(|pair| unsafe { pair.cast::<ThrottleStats>().add(direction) })
}

#[inline(always)]
unsafe fn count_refused(id: u64, direction: usize, wire: Wire) {
    let Some(stats) = stats(id, direction) else { return };
    // SAFETY: points into a map value.
    unsafe {
        atomic::add(&raw mut (*stats).packets_dropped, wire.packets);
        atomic::add(&raw mut (*stats).bytes_dropped, wire.bytes);
    }
}

/// `queued`: it has waited in a queue.
#[inline(always)]
unsafe fn count_passed(bucket: *mut TokenBucket, wire: Wire, queued: bool) {
    // SAFETY: the caller's: points into a map value.
    unsafe {
        atomic::add(&raw mut (*bucket).bytes_passed, wire.bytes);
        atomic::add(&raw mut (*bucket).packets_passed, wire.packets);
        if queued {
            atomic::add(&raw mut (*bucket).packets_delayed, wire.packets);
        }
    }
}

// What a packet is: the higher, the more debt it may find.
const NOT_TCP: u64 = 0;
const TCP: u64 = 1;
/// It may be an acknowledgement.
const SMALL_TCP: u64 = 2;
/// Opens, closes or resets a connection.
const URGENT_TCP: u64 = 3;

/// A packet that a limit may hold.
struct Packet<'a> {
    ctx: &'a SkBuffContext,
    socket: *mut bpf_sock,
    direction: usize,
    /// [`recent_ns`](crate::maps::recent_ns): what has room by it has room by the clock.
    recent_ns: u64,
    wire: Wire,
    /// Of a packet that came through a queue, its class.
    priority: u32,
}

/// A limit's bucket, as the packet found it.
struct Found {
    bucket: *mut TokenBucket,
    rate: NonZeroU64,
    now: u64,
    seen: u64,
}

impl Packet<'_> {
    /// Null: no such limit any more.
    #[inline(always)]
    unsafe fn bucket(&self, id: u64) -> *mut TokenBucket {
        if id == 0 {
            return core::ptr::null_mut();
        }
        match CGROUP_BUCKETS.get_ptr_mut(id) {
            // SAFETY: a map value of two elements, direction 0 or 1.
            Some(pair) => unsafe { pair.cast::<TokenBucket>().add(self.direction) },
            None => core::ptr::null_mut(),
        }
    }

    /// `None`: no limit in this direction.
    #[inline(always)]
    unsafe fn find<const CAS: bool>(&self, bucket: *mut TokenBucket) -> Option<Found> {
        if bucket.is_null() {
            return None;
        }
        // SAFETY: else it came from the map in this run.
        unsafe {
            let rate = NonZeroU64::new((*bucket).rate_bps)?;
            let now = ticks(self.recent_ns, (*bucket).epoch_ns);
            let seen = MapWord::<CAS>(&raw mut (*bucket).virtual_time).load();
            Some(Found { bucket, rate, now, seen })
        }
    }

    /// Whether the packet came through this very limit's queue: then it has waited its time.
    #[inline(always)]
    unsafe fn was_queued(&self, found: &Found) -> bool {
        // SAFETY: the pointer came from the map in this run.
        unsafe { (*found.bucket).class_id != 0 && (*found.bucket).class_id == self.priority }
    }

    /// What a packet has to be to pass: 0 anything, then [`TCP`] and so on; more than these: nothing passes.
    #[inline(always)]
    unsafe fn demand(&self, found: &Found, now_ns: u64) -> u64 {
        // SAFETY: the pointer came from the map in this run.
        unsafe {
            let paced = self.direction == UPLOAD && (*found.bucket).level != 0;
            let burst = if paced { BURST_TICKS } else { 0 };
            let tolerances = [0, burst, (*found.bucket).small_ticks, (*found.bucket).urgent_ticks];
            let exceeded = exceeded(found.seen, ticks(now_ns, (*found.bucket).epoch_ns), tolerances);
            if self.was_queued(found) { 0 } else { exceeded }
        }
    }

    /// The highest demand that this packet meets. Only asked when there is one.
    #[inline(always)]
    unsafe fn meets(&self) -> u64 {
        // SAFETY: the socket came with the context.
        if !unsafe { is_tcp(self.socket) } {
            NOT_TCP
        } else if self.wire.bytes > SMALL_PACKET {
            TCP
        } else if packet::is_urgent(self.ctx) {
            URGENT_TCP
        } else {
            SMALL_TCP
        }
    }

    #[inline(always)]
    unsafe fn charge<const CAS: bool>(&self, found: &Found, queue_slack: u64) {
        // SAFETY: as above.
        unsafe {
            let word = MapWord::<CAS>(&raw mut (*found.bucket).virtual_time);
            let cost = cost(self.wire.bytes, found.rate);
            // What this limit's queue has held is not asked: it only takes room from what comes past it.
            if has_room(found.seen, found.now, queue_slack) || !self.was_queued(found) {
                charge(&word, found.seen, found.now, cost, (*found.bucket).capacity_ticks);
            }
            count_passed(found.bucket, self.wire, self.priority >> 16 == CLASS_MAJOR);
        }
    }

    /// 0 when it may pass although the bucket is in debt, in the slice kept for that; else 1. Beside a queue everything
    /// may that does not come through it. Elsewhere TCP has what it tolerates of debt, and the slice is for datagrams
    /// of up to `most` bytes.
    #[inline(always)]
    unsafe fn refused_beside(&self, found: &Found, now_ns: u64, meets: u64, most: u64) -> u64 {
        // SAFETY: as above.
        unsafe {
            let tolerated = if (*found.bucket).class_id != 0 {
                let answer = meets != TCP && self.wire.bytes <= ANSWER;
                if answer { (*found.bucket).small_ticks << BESIDE_SHIFT } else { 0 }
            } else if meets == NOT_TCP && self.wire.bytes <= most {
                SMALL_SLACK << BESIDE_SHIFT
            } else {
                return 1;
            };
            exceeded((*found.bucket).beside_time, ticks(now_ns, (*found.bucket).epoch_ns), [tolerated])
        }
    }

    #[inline(always)]
    unsafe fn charge_beside<const CAS: bool>(&self, found: &Found) {
        // SAFETY: as above.
        unsafe {
            let word = MapWord::<CAS>(&raw mut (*found.bucket).beside_time);
            charge(&word, word.load(), found.now, cost_beside(self.wire.bytes, found.rate), 0);
        }
    }

    /// Leaves a packet that nothing paces to its device, where that keeps packets until their time: when the bucket
    /// will have room for it. 0: it did; else the largest packet that may pass beside instead.
    #[inline(always)]
    unsafe fn departs_later(&self, id: u64, found: &Found, now_ns: u64, meets: u64) -> u64 {
        // SAFETY: as above; fields of the context.
        unsafe {
            if self.direction != UPLOAD || meets != NOT_TCP {
                return ANSWER;
            }
            let skb = self.ctx.skb.skb;
            let departure = Departure { limit: id, device: (*skb).ifindex, reserved: 0 };
            match DEPARTURES.get(&departure) {
                Some(&DEVICE_KEEPS) => {}
                Some(_) => return ANSWER,
                None => {
                    // BPF_NOEXIST: the owner may have answered another processor's question.
                    let _ = DEPARTURES.insert(departure, 0, 1);
                    return ANSWER;
                }
            }
            let epoch_ns = (*found.bucket).epoch_ns;
            let debt = found.seen.saturating_sub(ticks(now_ns, epoch_ns));
            if !may_be_kept(debt, self.wire.bytes, found.rate) {
                return QUESTION;
            }
            let at = out_of_debt_ns(found.seen, epoch_ns);
            // Who sets a time of its own (SO_TXTIME) is not to be sooner.
            atomic::add(&raw mut (*found.bucket).packets_delayed, self.wire.packets);
            if at > (*skb).tstamp {
                core::ptr::write_volatile(&raw mut (*skb).tstamp, at);
            }
            0
        }
    }

    #[inline(always)]
    unsafe fn look_at_level<const CAS: bool>(&self, found: &Found) {
        if self.direction == UPLOAD {
            // SAFETY: as above.
            unsafe { pacing::look::<CAS>(found.bucket, self.recent_ns, found.seen, found.now) };
        }
    }

    /// One limit, which is the usual case. `found_ticks`: [`Tag::found_ticks`].
    #[inline(always)]
    unsafe fn pass_one<const CAS: bool>(&self, id: u64, found_ticks: &mut i64) -> bool {
        // SAFETY: as above.
        unsafe {
            let Some(found) = self.find::<CAS>(self.bucket(id)) else { return true };
            self.look_at_level::<CAS>(&found);
            let mut passes = has_room(found.seen, found.now, 0) || self.was_queued(&found);
            if !passes {
                let (now_ns, meets) = (bpf_ktime_get_ns(), self.meets());
                passes = self.demand(&found, now_ns) <= meets;
                if !passes {
                    let most = self.departs_later(id, &found, now_ns, meets);
                    passes = most == 0;
                    if !passes && self.refused_beside(&found, now_ns, meets, most) == 0 {
                        self.charge_beside::<CAS>(&found);
                        passes = true;
                    }
                }
            }
            if passes {
                if self.direction == UPLOAD && self.wire.bytes > SMALL_PACKET {
                    *found_ticks = found.seen.wrapping_sub(found.now) as i64;
                }
                self.charge::<CAS>(&found, QUEUE_SLACK);
            } else {
                count_refused(id, self.direction, self.wire);
            }
            passes
        }
    }

    /// Whether it passes nested limits of which one seems to have no room; counts it where not.
    #[inline(always)]
    unsafe fn pass_late<const CAS: bool>(&self, ids: &[u64; MAX_NESTED]) -> bool {
        // SAFETY: as above.
        unsafe {
            let (now_ns, mut meets) = (bpf_ktime_get_ns(), self.meets());
            // There is no slice for it here.
            if meets == NOT_TCP && self.wire.bytes <= SMALL_PACKET {
                meets = SMALL_TCP;
            }
            let mut refused = [0; MAX_NESTED];
            let mut any = 0;
            for (id, refused) in ids.iter().zip(&mut refused) {
                if let Some(found) = self.find::<CAS>(self.bucket(*id)) {
                    // 1 when the demand is higher: no branch, as in `exceeded`.
                    *refused = meets.wrapping_sub(self.demand(&found, now_ns)) >> 63;
                    any += *refused;
                }
            }
            if any != 0 {
                for (refused, id) in refused.iter().zip(ids) {
                    if *refused != 0 {
                        count_refused(*id, self.direction, self.wire);
                    }
                }
            }
            any == 0
        }
    }

    /// Whether it came through a queue where all its limits were charged already; counts it then.
    #[inline(always)]
    unsafe fn was_charged(&self, ids: &[u64; MAX_NESTED]) -> bool {
        // SAFETY: as above.
        unsafe {
            let mut ours = 0;
            for id in ids {
                let bucket = self.bucket(*id);
                if !bucket.is_null() && (*bucket).class_id == self.priority {
                    ours += 1;
                }
            }
            if ours == 0 {
                return false;
            }
            for id in ids {
                let bucket = self.bucket(*id);
                if !bucket.is_null() && (*bucket).rate_bps != 0 {
                    count_passed(bucket, self.wire, true);
                }
            }
        }
        true
    }

    /// Nested limits: all are asked, then all are charged. There is no slice beside their queue: with it the programs
    /// have more ways through them than the verifier gets to the end of in a reasonable time. So the queue is only
    /// charged where there is room, and leaves some to others.
    #[inline(always)]
    unsafe fn pass_all<const CAS: bool>(&self, ids: &[u64; MAX_NESTED]) -> bool {
        // SAFETY: as above.
        unsafe {
            // Each step looks the buckets up again: four pointers kept, each of which may be null, are sixteen states
            // in which the verifier walks through all that follows.
            let mut late = 0;
            for id in ids {
                if let Some(found) = self.find::<CAS>(self.bucket(*id)) {
                    late += exceeded(found.seen, found.now, [0]);
                }
            }
            if late != 0 && !self.pass_late::<CAS>(ids) {
                return false;
            }
            for id in ids {
                if let Some(found) = self.find::<CAS>(self.bucket(*id)) {
                    self.look_at_level::<CAS>(&found);
                    self.charge::<CAS>(&found, 0);
                }
            }
        }
        true
    }
}

/// `None`: not limited, let it pass.
#[inline(always)]
unsafe fn hold<const CAS: bool>(ctx: &SkBuffContext, direction: usize) -> Option<i32> {
    // SAFETY: fields of the context; sockets are checked for null before use; map values are only
    // reached through pointers the maps returned in this run.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let tag = tag_of(socket)?;
        let (state, recent_ns) = live_state()?;
        resolve(tag, state.epoch);
        if tag.limits[0] == 0 {
            return None;
        }
        if unclaimed(tag) {
            if (*socket).state != TCP_LISTEN {
                tell_owner(tag);
            }
            return None;
        }
        let (mut one, mut single) = (tag.limits[0], tag.limits[1] == 0);
        let selective = if single { one & SELECTIVE != 0 } else { are_selective(&tag.limits) };
        let mut narrowed = [0; MAX_NESTED];
        if selective {
            narrowed = remote::narrowed(ctx, direction, tag, socket);
            // What is not about this packet is zero.
            one = narrowed[0] | narrowed[1] | narrowed[2] | narrowed[3];
            single = narrowed.iter().map(|id| *id >> 63).sum::<u64>() < 2;
            if one == 0 {
                return None;
            }
        }
        // Over loopback it is the sender's. Without a branch, which would double what the verifier walks through.
        let elsewhere = ((*ctx.skb.skb).ifindex ^ LOOPBACK) as i32;
        let priority = (*ctx.skb.skb).priority & ((elsewhere | elsewhere.wrapping_neg()) >> 31) as u32;
        let timed = direction == DOWNLOAD && priority >> 16 == TIMED_MAJOR;
        if direction == DOWNLOAD {
            let queued = priority >> 16 == CLASS_MAJOR || timed;
            tag.past_queue = u32::from(!queued);
            if !queued {
                tell_device(ctx, tag);
            }
        }
        let packet = Packet { ctx, socket, direction, recent_ns, wire: packet::wire(ctx), priority };
        if timed && packet.was_charged(if selective { &narrowed } else { &tag.limits }) {
            return Some(PASS);
        }
        let passes = if single { packet.pass_one::<CAS>(one, &mut tag.found_ticks) } else { packet.pass_all::<CAS>(if selective { &narrowed } else { &tag.limits }) };
        if !passes {
            take_back(socket, direction, packet.wire.bytes);
        }
        Some(if passes {
            PASS
        } else if direction == UPLOAD && !is_tcp(socket) {
            // The sender must not see an error.
            DROP_AND_SLOW_DOWN
        } else {
            // On upload TCP keeps the segment and tries again.
            DROP
        })
    }
}

/// `egress` in the attribute sets the expected attach type, without which verdict 2 is refused.
#[cgroup_skb(egress)]
pub fn limit_egress(ctx: SkBuffContext) -> i32 {
    // SAFETY: a context of this program.
    unsafe { hold::<true>(&ctx, UPLOAD) }.unwrap_or(PASS)
}

#[cgroup_skb(ingress)]
pub fn limit_ingress(ctx: SkBuffContext) -> i32 {
    // SAFETY: as above.
    unsafe { hold::<true>(&ctx, DOWNLOAD) }.unwrap_or(PASS)
}

/// For kernels before 5.12.
#[cgroup_skb(egress)]
pub fn limit_egress_old(ctx: SkBuffContext) -> i32 {
    // SAFETY: as above.
    unsafe { hold::<false>(&ctx, UPLOAD) }.unwrap_or(PASS)
}

/// For kernels before 5.12.
#[cgroup_skb(ingress)]
pub fn limit_ingress_old(ctx: SkBuffContext) -> i32 {
    // SAFETY: as above.
    unsafe { hold::<false>(&ctx, DOWNLOAD) }.unwrap_or(PASS)
}

/// Not attached anywhere: run by the owner, with a `BucketChange` for a packet, to give a bucket that
/// packets are using another rate. Returns 1 when there is such a bucket.
#[cgroup_skb(ingress)]
pub fn change_bucket(ctx: SkBuffContext) -> i32 {
    let Ok(change) = ctx.load::<BucketChange>(0) else { return 0 };
    let Some(pair) = CGROUP_BUCKETS.get_ptr_mut(change.id) else { return 0 };
    // SAFETY: a map value of two elements; one field at a time, each of which a packet may see before
    // the next: then one packet is judged by a mixture of the two rates.
    unsafe {
        let direction = if change.direction == UPLOAD as u64 { UPLOAD } else { DOWNLOAD };
        let bucket = pair.cast::<TokenBucket>().add(direction);
        (*bucket).capacity = change.bucket.capacity;
        (*bucket).capacity_ticks = change.bucket.capacity_ticks;
        (*bucket).small_ticks = change.bucket.small_ticks;
        (*bucket).urgent_ticks = change.bucket.urgent_ticks;
        (*bucket).class_id = change.bucket.class_id;
        (*bucket).room = change.bucket.room;
        // No debt: it would be far longer, or shorter, at another rate.
        (*bucket).beside_time = 0;
        (*bucket).level = change.bucket.level;
        (*bucket).level_period_us = change.bucket.level_period_us;
        (*bucket).level_pauses = 0;
        (*bucket).level_in_want = 0;
        atomic::add(&raw mut (*bucket).virtual_time, change.shift);
        (*bucket).rate_bps = change.bucket.rate_bps;
    }
    1
}
