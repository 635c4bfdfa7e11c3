//! The global batch is the contract, the number of workers is not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use tests::{Job, Recipe, losses};

#[test]
fn two_workers_and_one_give_the_same_losses() {
    let recipe = Recipe { steps: 50, global_batch: 32, chunk: 8, every_steps: 50, ..Recipe::default() };
    let (one, two) = (Job::new(&recipe), Job::new(&recipe));
    one.run(1);
    two.run(2);
    let (one, two) = (losses(&one.steps()), losses(&two.steps()));
    assert_eq!(one.len(), 50);
    for (step, loss) in &one {
        let other = two[step];
        assert!((loss - other).abs() <= 1e-4 * loss.abs(), "step {step}: {loss} with one worker, {other} with two");
    }
}
