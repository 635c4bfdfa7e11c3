//! Which versions of the protocol between workers and coordinators this build speaks.
//!
//! A change that the other side can ignore (a new field, a new report) is none. One that it cannot raises [`SPOKEN`]'s upper end;
//! its lower end follows one release later, so that a cluster is updated machine by machine while its jobs run.

/// The lowest and the highest.
pub const SPOKEN: (u32, u32) = (1, 1);

/// The highest version that both sides speak; absent when there is none.
pub fn common(ours: (u32, u32), theirs: (u32, u32)) -> Option<u32> {
    let (lowest, highest) = (ours.0.max(theirs.0), ours.1.min(theirs.1));
    (lowest <= highest).then_some(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_that_both_speak() {
        let check =
            |theirs, expected| assert_eq!((common((3, 4), theirs), common(theirs, (3, 4))), (expected, expected));
        check((3, 4), Some(4));
        check((4, 5), Some(4));
        check((1, 3), Some(3));
        check((1, 2), None);
        check((5, 9), None);
    }
}
