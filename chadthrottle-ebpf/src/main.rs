//! ChadThrottle's eBPF programs.
//!
//! - [`limit`]: a packet at the socket's hook: which limits hold it, may it pass.
//! - [`pacing`]: TCP sends no faster than the limit, so that nothing need be refused.
//! - [`download`]: the queue in front of a download limit, and the windows that keep it short.
//! - [`remote`]: limits on traffic with some far ends only.
//! - [`tracking`]: which processes are limited: fork, exec, new names, new cgroups, exit.
//! - [`rules`]: which limits a process comes under by what it is.
//! - [`sockets`]: which sockets those processes own: at birth, open already, in use.
//! - [`count`]: what every process moves, for the monitor.
//! - [`maps`], [`atomic`], [`kernel`]: maps, atomics on map values, fields of kernel objects.
//!
//! Rules: a packet without a tag passes; every failure passes; no slice indexing and no division by
//! what could be zero, since a reachable panic makes the build fail.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)] // the atomics: core::sync::atomic has no read-modify-write on this target

mod atomic;
mod count;
mod departure;
mod download;
mod kernel;
mod limit;
mod maps;
mod pacing;
mod packet;
mod remote;
mod rules;
mod sockets;
mod tracking;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// "Dual MIT/GPL": the tracing helpers are only for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
