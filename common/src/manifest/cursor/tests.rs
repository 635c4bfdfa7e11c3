//! The data record: what it refuses, how it goes on, how large it is, and what it was before.

use super::*;
use crate::manifest::Manifest;

fn spec(sets: usize, weights: Option<Vec<u32>>) -> OrderSpec {
    let source = |number: usize| OrderSource {
        name: format!("cc3m-part-{number}"),
        samples: 2_873_538 + number as u64,
        shuffle: Shuffle::Full,
    };
    OrderSpec {
        seed: 1_234_567_890,
        global_batch: 32_768,
        sources: (0..sets).map(source).collect(),
        policy: Policy::Mixed,
        tail: Tail::Carry,
        segments: vec![Segment::first(weights)],
    }
}

fn record(spec: &OrderSpec, position: u64) -> DataCursor {
    DataCursor::new(spec, position, |number| blake3::hash(&[number as u8]).to_string())
}

#[test]
fn eight_data_sets_take_less_than_a_kilobyte_and_come_back() {
    let cursor = record(&spec(8, Some(vec![10, 20, 30, 40, 50, 60, 70, 80])), 12_345_678_901);
    let text = serde_json::to_string(&cursor).unwrap();
    assert!(text.len() <= 1024, "{} bytes: {text}", text.len());
    assert_eq!(serde_json::from_str::<DataCursor>(&text).unwrap(), cursor);
    let order = Order::new(cursor.spec()).unwrap();
    let changed = order.with_weights_from(Step(376_760), Some(vec![80, 70, 60, 50, 40, 30, 20, 10])).unwrap();
    let longer = serde_json::to_string(&record(changed.spec(), 12_345_678_901)).unwrap().len();
    assert!(longer <= text.len() + 200, "a change of weights adds {} bytes", longer - text.len());
}

#[test]
fn every_difference_is_named_with_both_values() {
    let written = record(&spec(2, None), 0);
    let check = |change: fn(&mut DataCursor), expected: &str| {
        let mut now = written.clone();
        change(&mut now);
        let error = written.refuse_difference(&now).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nshould say\n{expected}");
        assert_eq!(written.resume(&now, Weights::AsWritten).unwrap_err().to_string(), error);
    };
    check(|c| c.order = 3, "the version of the order was 2 when it was written and is 3 now");
    check(|c| c.augmentation = 2, "the version of crops and caption choice was 1");
    check(|c| c.seed = 4, "`seed` was 1234567890 when it was written and is 4 now");
    check(|c| c.global_batch = 1024, "`global_batch` was 32768 when it was written and is 1024 now");
    check(|c| c.policy = Policy::OneSource, "`mix.policy` was \"mixed\" when it was written and is \"one-source\" now");
    check(|c| c.tail = Tail::Drop, "`tail` was \"carry\" when it was written and is \"drop\" now");
    check(|c| drop(c.sources.pop()), "the list of data sets was [cc3m-part-0, cc3m-part-1] when");
    check(|c| c.sources.swap(0, 1), "and is [cc3m-part-1, cc3m-part-0] now");
    check(|c| c.sources[1].samples += 1, "the number of samples of data set `cc3m-part-1` was 2873539 when");
    check(
        |c| c.sources[0].fingerprint = "ab".into(),
        "the fingerprint of the index of data set `cc3m-part-0` was 2d3adedf",
    );
    check(
        |c| c.sources[0].shuffle = Shuffle::Blocks { block: 8, window: 80 },
        "`shuffle` of data set `cc3m-part-0` was \"full\" when it was written and is {\"block\":8,\"window\":80} now",
    );
    check(|c| c.segments[0].weights = Some(vec![1, 2]), "`mix.weights` was in proportion to the sizes when");
    // Another position is no difference.
    written.refuse_difference(&record(&spec(2, None), 99)).unwrap();
}

#[test]
fn changed_weights_are_refused_or_begin_a_segment_at_the_step_of_the_resume() {
    let written = record(&spec(2, Some(vec![1, 2])), 32_768 * 100);
    let now = record(&spec(2, Some(vec![1, 1])), 0);
    assert!(
        matches!(written.resume(&now, Weights::AsWritten), Err(ResumeError::Difference(d)) if d.field == "`mix.weights`")
    );
    let order = written.resume(&now, Weights::MayChange).unwrap();
    assert_eq!(order.spec().segments.len(), 2);
    assert_eq!(order.spec().segments[1].first, Step(100));
    let past = Order::new(written.spec()).unwrap();
    assert_eq!(order.draw(Step(99), 7), past.draw(Step(99), 7));
    // A checkpoint of the new segment goes on in it, and the same weights begin no further one.
    let later = record(order.spec(), 32_768 * 150);
    for weights in [Weights::AsWritten, Weights::MayChange] {
        assert_eq!(later.resume(&now, weights).unwrap().spec(), order.spec());
    }
    let other = record(&spec(3, Some(vec![1, 1, 1])), 0);
    assert!(written.resume(&other, Weights::MayChange).is_err(), "weights may change, data sets may not");
    let none = record(&spec(2, Some(vec![0, 0])), 0);
    assert_eq!(
        written.resume(&none, Weights::MayChange).unwrap_err().to_string(),
        "the weights of the mix cannot be changed: no data set of the mix has a weight above 0"
    );
}

#[test]
fn a_manifest_of_format_1_is_read_and_its_order_refused() {
    let text = include_str!("../../../../tests/golden/manifest/format-1.json");
    let old = Manifest::parse(text, Step(50)).unwrap();
    assert_eq!((old.format, old.parts.len()), (crate::manifest::FORMAT, 1));
    assert_eq!((old.data.order, old.data.position, old.data.global_batch), (1, 6400, 128));
    assert_eq!((old.data.sources[0].name.as_str(), old.data.sources[0].fingerprint.len()), ("train", 32));
    let mut now = old.data.clone();
    now.order = ORDER_VERSION;
    let error = old.data.refuse_difference(&now).unwrap_err().to_string();
    assert!(error.contains("the version of the order was 1 when it was written and is 2 now"), "{error}");
    assert_eq!(Manifest::parse(&old.to_text(), Step(50)).unwrap(), old);
}

#[test]
fn a_manifest_of_format_2_is_read_and_gone_on_from() {
    let text = include_str!("../../../../tests/golden/manifest/format-2.json");
    let old = Manifest::parse(text, Step(26)).unwrap();
    assert_eq!(
        (old.format, old.world.0, old.parts[0].file.as_str()),
        (crate::manifest::FORMAT, 1, "rank-00000.safetensors")
    );
    assert_eq!((old.data.order, old.data.position), (ORDER_VERSION, 26 * old.data.global_batch));
    assert_eq!(old.data.refuse_difference(&old.data.clone()), Ok(()));
    assert_eq!(Manifest::parse(&old.to_text(), Step(26)).unwrap(), old);
}
