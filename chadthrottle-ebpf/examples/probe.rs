#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, dead_code)]
#[path = "../src/atomic.rs"]
mod atomic;
#[path = "../src/maps.rs"]
mod maps;
use aya_ebpf::{helpers::*, macros::{cgroup_skb,map}, maps::{Array,HashMap}, programs::SkBuffContext, bindings::bpf_sock};
use core::num::NonZeroU64;
use chadthrottle_common::bucket::*;
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
#[map]
static H: HashMap<u64, [u64;14]> = HashMap::with_max_entries(8192, 0);
#[map]
static A: Array<[u64;14]> = Array::with_max_entries(8192, 0);

#[inline(always)]
fn sk(ctx: &SkBuffContext) -> *mut bpf_sock { unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk } }

#[cgroup_skb(egress)]
pub fn p00_empty_egress(_ctx: SkBuffContext) -> i32 { 1 }
#[cgroup_skb(egress)]
pub fn p01_fullsock_egress(ctx: SkBuffContext) -> i32 { let s = sk(&ctx); if s.is_null() {return 1}; let s = unsafe{bpf_sk_fullsock(s)}; if s.is_null() {return 1}; unsafe{core::ptr::read_volatile(&raw const (*s).protocol)}; 1 }
#[cgroup_skb(egress)]
pub fn p02_storage_egress(ctx: SkBuffContext) -> i32 { let s = sk(&ctx); if s.is_null() {return 1}; let t = unsafe{maps::TAGS.get_or_create(s.cast())}; if let Some(t)=t { t.epoch=1;}  1 }
#[cgroup_skb(egress)]
pub fn p03_ktime_egress(_ctx: SkBuffContext) -> i32 { if unsafe{bpf_ktime_get_ns()} > 5 {1} else {0} }
#[cgroup_skb(egress)]
pub fn p04_coarse_egress(_ctx: SkBuffContext) -> i32 { if unsafe{bpf_ktime_get_coarse_ns()} > 5 {1} else {0} }
#[cgroup_skb(egress)]
pub fn p05_hash_egress(_ctx: SkBuffContext) -> i32 { if let Some(p)=H.get_ptr_mut(1u64<<63|1) { unsafe{core::ptr::write_volatile(p.cast::<u64>(), 5)} } 1 }
#[cgroup_skb(egress)]
pub fn p06_hash2_egress(_ctx: SkBuffContext) -> i32 { if let Some(p)=H.get_ptr_mut(1u64<<63|1) { unsafe{core::ptr::write_volatile(p.cast::<u64>(), 5)} } if let Some(p)=H.get_ptr_mut(1u64<<63|2) { unsafe{core::ptr::write_volatile(p.cast::<u64>(), 5)} } 1 }
#[cgroup_skb(egress)]
pub fn p07_array_egress(ctx: SkBuffContext) -> i32 { if let Some(p)=A.get_ptr_mut(unsafe{(*ctx.skb.skb).len}) { unsafe{core::ptr::write_volatile(p.cast::<u64>(), 5)} } 1 }
#[cgroup_skb(egress)]
pub fn p08_xadd_egress(_ctx: SkBuffContext) -> i32 { if let Some(p)=A.get_ptr_mut(1) { unsafe{atomic::add(p.cast::<u64>(), 5)} } 1 }
#[cgroup_skb(egress)]
pub fn p09_xadd3_egress(_ctx: SkBuffContext) -> i32 { if let Some(p)=A.get_ptr_mut(1) { unsafe{atomic::add(p.cast::<u64>(), 5);atomic::add(p.cast::<u64>().add(1), 5);atomic::add(p.cast::<u64>().add(2), 5)} } 1 }
#[cgroup_skb(egress)]
pub fn p10_step_egress(ctx: SkBuffContext) -> i32 { if let Some(p)=A.get_ptr_mut(2) { unsafe{ let w=atomic::MapWord::<true>(p.cast::<u64>()); let r=core::ptr::read_volatile(p.cast::<u64>().add(1)); let r= NonZeroU64::new(r+1000000000).unwrap_or(NonZeroU64::MIN); if token_bucket_allow(&w, 1<<50, (*ctx.skb.skb).len.into(), r, 1<<60) {return 1} } } 1 }
#[cgroup_skb(egress)]
pub fn p11_mptcp_egress(ctx: SkBuffContext) -> i32 { let s = sk(&ctx); if s.is_null() {return 1}; let s = unsafe{bpf_sk_fullsock(s)}; if s.is_null() {return 1}; let m = unsafe{bpf_skc_to_mptcp_sock(s.cast())}; if m.is_null() {1} else {0} }
#[cgroup_skb(egress)]
pub fn p12_skfields_egress(ctx: SkBuffContext) -> i32 { let s = unsafe{&*ctx.skb.skb}; let _ = unsafe{(core::ptr::read_volatile(&s.len),core::ptr::read_volatile(&s.gso_size),core::ptr::read_volatile(&s.gso_segs))}; 1 }
#[cgroup_skb(egress)]
pub fn p13_jiffies_egress(_ctx: SkBuffContext) -> i32 { if unsafe{bpf_jiffies64()} > 5 {1} else {0} }
#[cgroup_skb(egress)]
pub fn p14_array2_egress(_ctx: SkBuffContext) -> i32 { 1 }
