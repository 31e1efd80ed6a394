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
        BucketChange, DOWNLOAD, EVENT_ACCEPTED, Event, MAX_NESTED, TAG_LISTENER, TAG_SHARED, TAG_TOLD, Tag,
        ThrottleStats, TokenBucket, UPLOAD,
    },
    bucket::{SMALL_PACKET, Word, charge, cost, has_room, ticks},
    pacing::BURST_TICKS,
    wire::Wire,
};

use crate::{
    atomic::{self, MapWord},
    kernel::global,
    maps::{CGROUP_BUCKETS, CGROUP_STATS, EVENTS, MPTCP, TAGS, live_state, resolve},
    packet, pacing,
};

/// Verdicts of cgroup_skb (egress has all of them, ingress the first two).
const DROP: i32 = 0;
const PASS: i32 = 1;
/// TCP keeps the segment; a UDP sender is told that all went well.
const DROP_AND_SLOW_DOWN: i32 = 2;

const IPPROTO_TCP: u32 = 6;
const TCP_LISTEN: u32 = 10;

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

#[inline(always)]
unsafe fn is_tcp(socket: *mut bpf_sock) -> bool {
    // SAFETY: the caller's: a socket from the context.
    unsafe {
        let socket = bpf_sk_fullsock(socket);
        !socket.is_null() && (*socket).protocol == IPPROTO_TCP
    }
}

/// A connection from a listener that several processes share, which none has claimed yet: tells the
/// owner, once, so that it looks who holds it.
#[inline(always)]
fn tell_owner(tag: &mut Tag) {
    if tag.flags & TAG_TOLD == 0 {
        tag.flags |= TAG_TOLD;
        let _ = EVENTS.output::<Event>(Event { kind: EVENT_ACCEPTED, tgid: tag.tgid }, 0);
    }
}

#[inline(always)]
unsafe fn count(id: u64, direction: usize, wire: Wire, passed: bool) {
    let Some(pair) = CGROUP_STATS.get_ptr_mut(id) else { return };
    // SAFETY: a map value of two elements, direction 0 or 1.
    unsafe {
        let stats = pair.cast::<ThrottleStats>().add(direction);
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
    socket: *mut bpf_sock,
    direction: usize,
    /// [`recent_ns`](crate::maps::recent_ns): what has room by it has room by the clock.
    recent_ns: u64,
    wire: Wire,
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

    #[inline(always)]
    unsafe fn has_room(&self, found: &mut Found) -> bool {
        if has_room(found.seen, found.now, 0) {
            return true;
        }
        // SAFETY: the pointer came from the map in this run.
        unsafe {
            found.now = ticks(bpf_ktime_get_ns(), (*found.bucket).epoch_ns);
            if has_room(found.seen, found.now, 0) {
                return true;
            }
            if self.direction == UPLOAD
                && (*found.bucket).level != 0
                && has_room(found.seen, found.now, BURST_TICKS)
                && is_tcp(self.socket)
            {
                return true;
            }
            // TCP that may be an acknowledgement, or opens or closes a connection.
            self.wire.bytes <= SMALL_PACKET
                && is_tcp(self.socket)
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
            charge(&word, found.seen, found.now, cost, (*found.bucket).capacity_ticks);
            count(id, self.direction, self.wire, true);
        }
    }

    #[inline(always)]
    unsafe fn look_at_level(&self, id: u64, found: &Found) {
        if self.direction == UPLOAD {
            // SAFETY: as above.
            unsafe { pacing::look(id, found.bucket, self.recent_ns) };
        }
    }

    /// One limit, which is the usual case.
    #[inline(always)]
    unsafe fn pass_one<const CAS: bool>(&self, id: u64) -> bool {
        // SAFETY: as above.
        unsafe {
            let Some(mut found) = self.find::<CAS>(self.bucket(id)) else { return true };
            self.look_at_level(id, &found);
            let passes = self.has_room(&mut found);
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
                if let Some(mut found) = self.find::<CAS>(self.bucket(*id))
                    && !self.has_room(&mut found)
                {
                    passes = false;
                    count(*id, self.direction, self.wire, false);
                }
            }
            if passes {
                for id in ids {
                    // Looked up again: four pointers kept, each of which may be null, are sixteen states in which
                    // the verifier walks through all that follows.
                    if let Some(found) = self.find::<CAS>(self.bucket(*id)) {
                        self.look_at_level(*id, &found);
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
        let tag = tag_of(socket)?;
        let (state, recent_ns) = live_state()?;
        resolve(tag, state.epoch);
        if tag.limits[0] == 0 {
            return None;
        }
        let unclaimed = TAG_SHARED | TAG_LISTENER;
        if tag.flags & unclaimed == unclaimed {
            if (*socket).state != TCP_LISTEN {
                tell_owner(tag);
            }
            return None;
        }
        let packet = Packet { ctx, socket, direction, recent_ns, wire: packet::wire(ctx) };
        let passes = if tag.limits[1] == 0 {
            packet.pass_one::<CAS>(tag.limits[0])
        } else {
            packet.pass_all::<CAS>(&tag.limits)
        };
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
        (*bucket).level = change.bucket.level;
        (*bucket).level_period_ns = change.bucket.level_period_ns;
        atomic::add(&raw mut (*bucket).virtual_time, change.shift);
        (*bucket).rate_bps = change.bucket.rate_bps;
    }
    1
}
