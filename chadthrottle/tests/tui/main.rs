//! The screens, from recorded snapshots: pictures of every screen at four sizes, and what keys do to them.

mod binary;
mod keys;
mod pictures;
mod pty;
mod scene;
mod screens;
mod stage;
mod svg;
