//! Who can take part: which places are free, and which of them a job gets. Pure: it knows no session and no clock.

mod place;
mod placement;

pub use self::{
    place::Place,
    placement::{Machine, NotEnough, choose, free},
};
