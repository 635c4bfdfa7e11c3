//! Which of several coordinators leads.
//!
//! They share a store. Whoever creates the election's key leads for as long as the key's lease lives; the revision that
//! created the key is its term. `decide` is the pure part: what to do at which time. `elector` does it. Four things keep a
//! deposed leader from harm: it stops by its own clock before its lease can lapse, the store refuses its writes
//! ([`crate::store::Fence`]), it answers no call ([`Seats`]), and workers obey no lower term than the newest they have seen.

mod decide;
mod elector;
mod record;
mod seat;

pub use self::{
    decide::{Leader, Timing},
    elector::{Elector, Identity},
    record::KEY,
    seat::{Office, Seat, Seats},
};
