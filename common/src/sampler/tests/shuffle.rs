//! Orders of an epoch: a bijection whatever the sizes, and neighbours that stay in their window.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn shuffled(block: u64, window: u64, epoch: u64, samples: u64) -> Shuffled {
    Shuffled::new(Shuffle::Blocks { block, window }, 7, 0, Epoch(epoch), samples)
}

fn check(block: u64, window: u64, samples: u64) {
    let mut order = shuffled(block, window, 3, samples);
    let mut seen = vec![false; samples as usize];
    for place in 0..samples {
        let sample = order.at(place);
        assert!(
            !std::mem::replace(&mut seen[sample.0 as usize], true),
            "{sample} of {samples} stands twice, blocks of {block}, windows of {window}"
        );
        assert_eq!(order.place_of(sample), place);
    }
}

proptest! {
    #[test]
    fn blocks_and_windows_of_any_size_are_a_bijection(block in 1u64..40, windows in 1u64..9, ragged in 0u64..40,
                                                      samples in 1u64..1500) {
        check(block, block * windows + ragged, samples);
    }
}

#[test]
fn short_last_blocks_and_windows_lose_nothing() {
    for samples in [1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129, 1000] {
        check(8, 64, samples);
        check(1, 1, samples);
        check(2000, 2000, samples);
    }
}

#[test]
fn a_window_reads_whole_blocks_and_few_of_them() {
    let (block, window, samples) = (64, 4096, 100_003);
    let mut order = shuffled(block, window, 0, samples);
    let (mut read, windows) = (0, samples / window);
    for number in 0..windows {
        let end = if number + 1 == windows { samples } else { (number + 1) * window };
        let blocks: BTreeSet<u64> = (number * window..end).map(|place| order.at(place).0 / block).collect();
        assert!(blocks.len() as u64 <= (end - number * window) / block + 2, "{} blocks in a window", blocks.len());
        read += blocks.len() as u64;
    }
    // Only a block at the border between two windows is read twice.
    assert!(read <= samples.div_ceil(block) + windows, "{read} blocks read");
    let first: Vec<u64> = (0..100).map(|place| order.at(place).0 / block).collect();
    assert!(first.windows(2).filter(|pair| pair[0] == pair[1]).count() < 10, "neighbours stay neighbours: {first:?}");
}

#[test]
fn the_short_block_stands_elsewhere_in_every_epoch() {
    // 100 blocks and 3 samples more: were they always last, `drop` would never train on them.
    let mut late = 0;
    for epoch in 0..200 {
        late += u64::from(shuffled(10, 100, epoch, 1003).place_of(SampleIndex(1002)) >= 900);
    }
    assert!((5..50).contains(&late), "in the last tenth in {late} of 200 epochs");
}

#[test]
fn shuffles_are_written_as_in_a_recipe() {
    let blocks = Shuffle::Blocks { block: 64, window: 4096 };
    assert_eq!(serde_json::to_string(&Shuffle::Full).unwrap(), r#""full""#);
    assert_eq!(serde_json::to_string(&blocks).unwrap(), r#"{"block":64,"window":4096}"#);
    for shuffle in [Shuffle::Full, blocks] {
        assert_eq!(serde_json::from_str::<Shuffle>(&serde_json::to_string(&shuffle).unwrap()).unwrap(), shuffle);
    }
}
