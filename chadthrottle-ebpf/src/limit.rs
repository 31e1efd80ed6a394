//! A packet at its socket's hook: which limits hold it, and may it pass. And the one way to change a
//! bucket in use.

use core::num::NonZeroU64;

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_sk_fullsock, bpf_skc_to_mptcp_sock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use chadthrottle_common::{
    abi::{
        BucketChange, CLASS_MAJOR, DOWNLOAD, EVENT_ACCEPTED, EVENT_DEVICE, Event, MAX_NESTED, TAG_LISTENER,
        TAG_SHARED, TAG_TOLD, Tag, ThrottleStats, TokenBucket, UPLOAD,
    },
    bucket::{SMALL_PACKET, Word, charge, cost, has_room, ticks},
    wire::Wire,
};

use crate::{
    atomic::{self, MapWord},
    kernel::global,
    maps::{CGROUP_BUCKETS, CGROUP_CONFIGS, CGROUP_STATS, EVENTS, TAGS, live_state, resolve},
    packet,
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

#[inline(always)]
unsafe fn tag_of(socket: *mut bpf_sock) -> Option<&'static mut Tag> {
    // SAFETY: the caller's: a full socket from the context.
    unsafe {
        if let Some(tag) = TAGS.get(socket.cast()) {
            return Some(tag);
        }
        // Subflows of MPTCP are the kernel's own sockets; the one the process holds is above them.
        if global::HAVE_MPTCP() == 0 || (*socket).protocol != IPPROTO_TCP {
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

/// Whether it belongs to a listener that several processes share, and none of them has claimed it yet.
#[inline(always)]
fn unclaimed(tag: &Tag) -> bool {
    let flags = TAG_SHARED | TAG_LISTENER;
    tag.flags & flags == flags
}

/// The tag of a socket that limits hold, resolved; `None` when none does.
///
/// # Safety
/// `socket` is a full socket that the verifier knows.
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

/// The counters of one direction, 0 or 1, of a limit.
#[inline(always)]
pub fn stats(id: u64, direction: usize) -> Option<*mut ThrottleStats> {
    // SAFETY: a map value of two elements.
    CGROUP_STATS.get_ptr_mut(id).map(|pair| unsafe { pair.cast::<ThrottleStats>().add(direction) })
}

#[inline(always)]
unsafe fn count(id: u64, direction: usize, wire: Wire, passed: bool) {
    let Some(stats) = stats(id, direction) else { return };
    // SAFETY: points into a map value.
    unsafe {
        if passed {
            atomic::add(&raw mut (*stats).packets_passed, wire.packets);
            atomic::add(&raw mut (*stats).bytes_passed, wire.bytes);
        } else {
            atomic::add(&raw mut (*stats).packets_dropped, wire.packets);
            atomic::add(&raw mut (*stats).bytes_dropped, wire.bytes);
        }
    }
}

/// A packet that a limit may hold.
struct Packet<'a> {
    ctx: &'a SkBuffContext,
    direction: usize,
    now_ns: u64,
    wire: Wire,
    /// TCP that may be an acknowledgement, or opens or closes a connection.
    small: bool,
    /// Class of the queue through which it came; 0: none.
    class: u32,
}

/// A limit's bucket, as the packet found it.
struct Found {
    bucket: *mut TokenBucket,
    rate: NonZeroU64,
    now: u64,
    seen: u64,
}

impl Packet<'_> {
    /// `None`: no such limit any more, or none in this direction.
    #[inline(always)]
    unsafe fn find<const CAS: bool>(&self, id: u64) -> Option<Found> {
        // SAFETY: a map value of two elements, direction 0 or 1.
        unsafe {
            let bucket = CGROUP_BUCKETS.get_ptr_mut(id)?.cast::<TokenBucket>().add(self.direction);
            let rate = NonZeroU64::new((*bucket).rate_bps)?;
            let now = ticks(self.now_ns, (*bucket).epoch_ns);
            let seen = MapWord::<CAS>(&raw mut (*bucket).virtual_time).load();
            Some(Found { bucket, rate, now, seen })
        }
    }

    /// Whether the packet came through this very limit's queue: then it has waited its time.
    #[inline(always)]
    fn was_queued(&self, id: u64) -> bool {
        // SAFETY: the element is freed only a second after the last tag that names it was resolved anew.
        self.class != 0
            && unsafe { CGROUP_CONFIGS.get(id) }.is_some_and(|[_, config]| config.class_id == self.class)
    }

    #[inline(always)]
    unsafe fn has_room(&self, id: u64, found: &Found) -> bool {
        if has_room(found.seen, found.now, 0) || self.was_queued(id) {
            return true;
        }
        // SAFETY: the pointer came from the map in this run.
        unsafe {
            self.small
                && (has_room(found.seen, found.now, (*found.bucket).small_ticks)
                    || has_room(found.seen, found.now, (*found.bucket).urgent_ticks)
                        && packet::is_urgent(self.ctx))
        }
    }

    #[inline(always)]
    unsafe fn charge<const CAS: bool>(&self, id: u64, found: &Found) {
        // SAFETY: as above.
        unsafe {
            let word = MapWord::<CAS>(&raw mut (*found.bucket).virtual_time);
            let cost = cost(self.wire.bytes, found.rate);
            // What was queued is held by the queue. It only takes room from what was not; if the queue's
            // clock runs a little faster than the bucket's, that must not add up to a debt.
            if self.class == 0 || has_room(found.seen, found.now, 0) {
                charge(&word, found.seen, found.now, cost, (*found.bucket).capacity_ticks);
            }
            count(id, self.direction, self.wire, true);
            if self.class != 0
                && let Some(stats) = stats(id, self.direction)
            {
                atomic::add(&raw mut (*stats).packets_delayed, self.wire.packets);
            }
        }
    }

    /// One limit, which is the usual case.
    #[inline(always)]
    unsafe fn pass_one<const CAS: bool>(&self, id: u64) -> bool {
        // SAFETY: as above.
        unsafe {
            let Some(found) = self.find::<CAS>(id) else { return true };
            let passes = self.has_room(id, &found);
            if passes {
                self.charge::<CAS>(id, &found);
            } else {
                count(id, self.direction, self.wire, false);
            }
            passes
        }
    }

    /// Nested limits: all are asked, then all are charged.
    #[inline(always)]
    unsafe fn pass_all<const CAS: bool>(&self, ids: &[u64; MAX_NESTED]) -> bool {
        let mut passes = true;
        // SAFETY: as above.
        unsafe {
            for id in ids {
                if let Some(found) = self.find::<CAS>(*id)
                    && !self.has_room(*id, &found)
                {
                    passes = false;
                    count(*id, self.direction, self.wire, false);
                }
            }
            if passes {
                for id in ids {
                    if let Some(found) = self.find::<CAS>(*id) {
                        self.charge::<CAS>(*id, &found);
                    }
                }
            }
        }
        passes
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
        let socket = bpf_sk_fullsock(socket);
        if socket.is_null() {
            return None;
        }
        let tag = tag_of(socket)?;
        let (state, now_ns) = live_state()?;
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
        let tcp = (*socket).protocol == IPPROTO_TCP;
        let wire = packet::wire(ctx);
        let mut class = 0;
        if direction == DOWNLOAD {
            let priority = (*ctx.skb.skb).priority;
            if priority >> 16 == CLASS_MAJOR {
                class = priority;
            } else {
                tell_device(ctx, tag);
            }
        }
        let small = tcp && wire.bytes <= SMALL_PACKET;
        let packet = Packet { ctx, direction, now_ns, wire, small, class };
        let passes = if tag.limits[1] == 0 {
            packet.pass_one::<CAS>(tag.limits[0])
        } else {
            packet.pass_all::<CAS>(&tag.limits)
        };
        Some(if passes {
            PASS
        } else if direction == UPLOAD && !tcp {
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
        atomic::add(&raw mut (*bucket).virtual_time, change.shift);
        (*bucket).rate_bps = change.bucket.rate_bps;
    }
    1
}
