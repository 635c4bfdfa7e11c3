//! Images in parquet files and in lists, in the layouts of img2dataset, Hugging Face, COCO and DOCCI.

use crate::data::{
    ClassWords, DataError, Dataset, SkipReason,
    tests::{columns, image, spec, storage, tar},
};
use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field};
use common::{
    ids::SampleIndex,
    recipe::{ClassBy, ClassNames, Classes, DataKind, DataSet, RowRange, Templates},
};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use std::{fs::File, path::Path, sync::Arc};

/// The body of sample `i`: bytes of its own, so that a neighbour's would be noticed.
fn body(i: usize) -> Vec<u8> {
    let mut bytes = image("420.jpg");
    bytes.extend(i.to_le_bytes());
    bytes
}

fn write(path: &Path, batch: &RecordBatch, group: usize) {
    let properties = WriterProperties::builder().set_max_row_group_size(group).set_data_page_row_count_limit(7).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn parquet(folder: &Path) -> DataSet {
    DataSet { kind: DataKind::Parquet, shards: vec![folder.join("*.parquet").into()], ..spec(folder, 0.5) }
}

fn img2dataset(rows: usize) -> RecordBatch {
    let bodies: Vec<Option<Vec<u8>>> = (0..rows).map(|i| (i % 10 != 3).then(|| body(i))).collect();
    let jpg: BinaryArray = bodies.iter().map(Option::as_deref).collect();
    let keys: StringArray = (0..rows).map(|i| Some(format!("{i:09}"))).collect();
    let txt: StringArray = (0..rows).map(|i| Some(format!("caption {i}"))).collect();
    let status: StringArray =
        (0..rows).map(|i| Some(if i % 10 == 3 { "failed_to_download" } else { "success" })).collect();
    RecordBatch::try_from_iter([
        ("key", Arc::new(keys) as ArrayRef),
        ("status", Arc::new(status) as ArrayRef),
        ("txt", Arc::new(txt) as ArrayRef),
        ("jpg", Arc::new(jpg) as ArrayRef),
    ])
    .unwrap()
}

#[test]
fn rows_that_img2dataset_could_not_fetch_are_no_samples_and_the_others_are_read_in_any_order() {
    for group in [1, 3, 100] {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("00000.parquet"), &img2dataset(40), group);
        write(&folder.path().join("00001.parquet"), &img2dataset(25), group);
        let data = Dataset::open(&storage(), "p", &parquet(folder.path())).unwrap();
        assert_eq!((data.len(), data.report().skipped[&SkipReason::NoImage].count), (58, 7));
        let mut bytes = Vec::new();
        for i in (0..data.len()).rev().step_by(3).map(SampleIndex) {
            let key: usize = data.key(i).unwrap().parse().unwrap();
            data.read_image(i, &mut bytes).unwrap();
            assert!(bytes == body(key), "row groups of {group}, sample {i:?}");
            assert_eq!(data.caption(i, 0).unwrap(), format!("caption {key}"));
        }
    }
}

#[test]
fn images_as_hugging_face_writes_them() {
    let folder = tempfile::tempdir().unwrap();
    let bodies: Vec<Vec<u8>> = (0..9).map(body).collect();
    let bytes: BinaryArray = bodies.iter().map(|body| Some(body.as_slice())).collect();
    let paths: StringArray = (0..9).map(|i| Some(format!("{i}.jpg"))).collect();
    let field = |name, kind| Arc::new(Field::new(name, kind, true));
    let images = StructArray::from(vec![
        (field("bytes", DataType::Binary), Arc::new(bytes) as ArrayRef),
        (field("path", DataType::Utf8), Arc::new(paths) as ArrayRef),
    ]);
    let ids: StringArray = (0..9).map(|i| Some(format!("id-{i}"))).collect();
    let batch =
        RecordBatch::try_from_iter([("id", Arc::new(ids) as ArrayRef), ("image", Arc::new(images) as ArrayRef)])
            .unwrap();
    write(&folder.path().join("train-00000-of-00001.parquet"), &batch, 4);
    let mut spec = parquet(folder.path());
    spec.captions.columns = columns(&[(".id", 1)]);
    let data = Dataset::open(&storage(), "hf", &spec).unwrap();
    let mut read = Vec::new();
    for i in [8, 0, 5, 3] {
        data.read_image(SampleIndex(i), &mut read).unwrap();
        assert!(read == bodies[i as usize], "{i}");
        assert_eq!(data.caption(SampleIndex(i), 0).unwrap(), format!("id-{i}"));
    }
    spec.image_column = Some("picture".to_owned());
    let error = Dataset::open(&storage(), "hf", &spec).unwrap_err().to_string();
    assert!(error.contains("no column `picture`; it has: id, image"), "{error}");
}

#[test]
fn many_threads_read_one_parquet_file_without_disturbing_each_other() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("0.parquet"), &img2dataset(60), 5);
    let data = Dataset::open(&storage(), "p", &parquet(folder.path())).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let data = &data;
            scope.spawn(move || {
                let mut bytes = Vec::new();
                for i in (0..data.len()).map(|i| SampleIndex((i * 7 + thread * 13) % data.len())) {
                    data.read_image(i, &mut bytes).unwrap();
                    assert!(bytes == body(data.key(i).unwrap().parse().unwrap()));
                }
            });
        }
    });
}

fn list(folder: &Path, name: &str, contents: &str) -> DataSet {
    std::fs::write(folder.join(name), contents).unwrap();
    DataSet { kind: DataKind::List, shards: vec![folder.join(name).into()], ..spec(folder, 0.0) }
}

#[test]
fn coco_of_karpathy_has_five_to_seven_captions_an_image() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("val2014")).unwrap();
    std::fs::write(folder.path().join("val2014/COCO_2.jpg"), body(2)).unwrap();
    let mut spec = list(
        folder.path(),
        "coco_karpathy_test.json",
        r#"[{"image": "val2014/COCO_1.jpg", "caption": ["a", "b", "c", "d", "e"]},
            {"image": "val2014/COCO_2.jpg", "caption": ["f", "g", "h", "i", "j", "k"]}]"#,
    );
    spec.captions.columns = columns(&[(".caption[*]", 1), (".caption[4]", 1)]);
    let data = Dataset::open(&storage(), "coco", &spec).unwrap();
    let counts: Vec<usize> = (0..2).map(|i| data.captions(SampleIndex(i), 0).unwrap().len()).collect();
    assert_eq!(counts, [5, 6]);
    let (texts, samples) = data.texts_with_samples(0).unwrap();
    assert_eq!((texts.len(), texts[5].as_str(), samples[5], samples[10]), (11, "f", SampleIndex(1), SampleIndex(1)));
    assert_eq!(data.captions(SampleIndex(1), 0).unwrap()[5], "k");
    assert_eq!(
        (data.caption(SampleIndex(1), 0).unwrap(), data.caption(SampleIndex(0), 1).unwrap()),
        ("f".into(), "e".into())
    );
    let mut bytes = Vec::new();
    data.read_image(SampleIndex(1), &mut bytes).unwrap();
    assert!(bytes == body(2));
    let error = data.read_image(SampleIndex(0), &mut bytes).unwrap_err().to_string();
    assert!(error.contains("COCO_1.jpg"), "{error}");
}

#[test]
fn docci_by_split_and_share_gpt4v_without_its_first_thousand() {
    let folder = tempfile::tempdir().unwrap();
    let line = |split: &str, i: usize| {
        format!(
            "{{\"example_id\": \"{split}_{i}\", \"split\": \"{split}\", \"image_file\": \"{split}_{i}.jpg\", \"description\": \"{i}\"}}\n"
        )
    };
    let text: String = (0..6).map(|i| line(if i % 2 == 0 { "train" } else { "test" }, i)).collect();
    let mut docci = list(folder.path(), "docci_descriptions.jsonlines", &text);
    docci.captions.columns = columns(&[(".description", 1)]);
    docci.only.insert("split".to_owned(), "test".to_owned());
    let data = Dataset::open(&storage(), "docci", &docci).unwrap();
    let all: Vec<String> = (0..data.len()).map(|i| data.caption(SampleIndex(i), 0).unwrap()).collect();
    assert_eq!((all, data.report().left_out), (vec!["1".into(), "3".into(), "5".into()], 3));

    let item = |i: usize| {
        format!("{{\"image\": \"{i}.jpg\", \"conversations\": [{{\"value\": \"?\"}}, {{\"value\": \"c{i}\"}}]}}")
    };
    let text = format!("[{}]", (0..1500).map(item).collect::<Vec<_>>().join(","));
    let mut share = list(folder.path(), "sharegpt4v.json", &text);
    share.captions.columns = columns(&[(".conversations[1].value", 1)]);
    share.rows = RowRange { from: 1000, to: None };
    let train = Dataset::open(&storage(), "share", &share).unwrap();
    assert_eq!((train.len(), train.caption(SampleIndex(0), 0).unwrap().as_str()), (500, "c1000"));
    share.rows = RowRange { from: 0, to: Some(1000) };
    let validation = Dataset::open(&storage(), "share", &share).unwrap();
    assert_eq!((validation.len(), validation.key(SampleIndex(999)).unwrap().as_str()), (1000, "999.jpg"));
    assert_ne!(train.fingerprint(), validation.fingerprint());
}

#[test]
fn a_parquet_file_without_images_names_its_columns() {
    let folder = tempfile::tempdir().unwrap();
    let texts: StringArray = [Some("x")].into_iter().collect();
    let batch = RecordBatch::try_from_iter([("text", Arc::new(texts) as ArrayRef)]).unwrap();
    write(&folder.path().join("0.parquet"), &batch, 1);
    let error = Dataset::open(&storage(), "p", &parquet(folder.path())).unwrap_err();
    assert!(matches!(error, DataError::MissingColumn { .. }), "{error}");
    assert!(error.to_string().contains("it has: text"), "{error}");
}

#[test]
fn urban1k_has_the_first_line_of_its_captions_and_image_net_the_names_of_its_folders() {
    let folder = tempfile::tempdir().unwrap();
    let urban = folder.path().join("Urban1k");
    std::fs::create_dir_all(urban.join("image")).unwrap();
    std::fs::create_dir_all(urban.join("caption")).unwrap();
    for i in [1, 2, 10] {
        std::fs::write(urban.join(format!("image/{i}.jpg")), body(i)).unwrap();
        std::fs::write(urban.join(format!("caption/{i}.txt")), format!("first {i}\nsecond")).unwrap();
    }
    let mut spec = DataSet { kind: DataKind::List, shards: vec![urban.clone().into()], ..spec(folder.path(), 0.0) };
    spec.captions.columns = columns(&[(".caption", 1)]);
    let data = Dataset::open(&storage(), "urban", &spec).unwrap();
    let pairs: Vec<_> =
        (0..3).map(|i| (data.key(SampleIndex(i)).unwrap(), data.caption(SampleIndex(i), 0).unwrap())).collect();
    let pair = |key: &str, caption: &str| (key.to_owned(), caption.to_owned());
    let expected = [pair("image/1.jpg", "first 1"), pair("image/10.jpg", "first 10"), pair("image/2.jpg", "first 2")];
    assert_eq!(pairs, expected);
    let mut bytes = Vec::new();
    data.read_image(SampleIndex(1), &mut bytes).unwrap();
    assert!(bytes == body(10));
    // A caption that changes is another data set, although no folder's time tells of it.
    std::fs::write(urban.join("caption/2.txt"), "other").unwrap();
    let changed = Dataset::open(&storage(), "urban", &spec).unwrap();
    assert_eq!(changed.caption(SampleIndex(2), 0).unwrap(), "other");
    assert_ne!(changed.fingerprint(), data.fingerprint());

    let net = folder.path().join("imagenet/val");
    for (class, i) in [("n01440764", 1), ("n01443537", 2)] {
        std::fs::create_dir_all(net.join(class)).unwrap();
        std::fs::write(net.join(format!("{class}/ILSVRC_{i}.JPEG")), body(i)).unwrap();
    }
    spec.shards = vec![net.into()];
    spec.captions.columns = columns(&[(".class", 1)]);
    let data = Dataset::open(&storage(), "imagenet", &spec).unwrap();
    assert_eq!((data.len(), data.caption(SampleIndex(1), 0).unwrap().as_str()), (2, "n01443537"));
    spec.captions.columns = columns(&[(".label", 1)]);
    assert!(
        Dataset::open(&storage(), "imagenet", &spec)
            .unwrap_err()
            .to_string()
            .contains("no column `label`; it has: caption, class")
    );
}

#[test]
fn clip_benchmark_tars_have_classes_or_lines_of_captions() {
    let folder = tempfile::tempdir().unwrap();
    let (jpg, png) = (image("420.jpg"), image("rgb.png"));
    let members: &[(&str, &[u8])] = &[
        ("s0000000.png", &png),
        ("s0000000.cls", b"7"),
        ("s0000001.jpg", &jpg),
        ("s0000001.cls", b"0"),
        ("s0000001.txt", b"one\ntwo\n\nthree"),
        ("s0000000.txt", b"zero"),
    ];
    std::fs::write(folder.path().join("0.tar"), tar(members)).unwrap();
    let mut spec = spec(folder.path(), 0.0);
    spec.captions.columns = columns(&[(".cls", 0), (".txt[*]", 1)]);
    let data = Dataset::open(&storage(), "bench", &spec).unwrap();
    let classes: Vec<String> = (0..2).map(|i| data.caption(SampleIndex(i), 0).unwrap()).collect();
    assert_eq!(classes, ["7", "0"]);
    let (texts, samples) = data.texts_with_samples(1).unwrap();
    assert_eq!(texts, ["zero", "one", "two", "three"]);
    assert_eq!(samples, [0, 1, 1, 1].map(SampleIndex));
}

#[test]
fn an_images_class_is_read_in_every_layout_and_one_without_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let jpg = image("420.jpg");
    let members: &[(&str, &[u8])] =
        &[("a.jpg", &jpg), ("a.cls", b"2\n"), ("b.jpg", &jpg), ("c.jpg", &jpg), ("c.cls", b"0")];
    std::fs::write(folder.path().join("0.tar"), tar(members)).unwrap();
    std::fs::create_dir(folder.path().join("rows")).unwrap();
    let images: BinaryArray = (0..3).map(|i| Some(body(i))).collect();
    let labels = Int64Array::from(vec![Some(2), None, Some(0)]);
    let rows = [("jpg", Arc::new(images) as ArrayRef), ("label", Arc::new(labels) as ArrayRef)];
    write(&folder.path().join("rows/0.parquet"), &RecordBatch::try_from_iter(rows).unwrap(), 2);
    let tars = spec(folder.path(), 0.5);
    let list =
        DataSet { broken_limit: 0.5, ..list(folder.path(), "list.csv", "image,label\na.jpg,2\nb.jpg,\nc.jpg,0\n") };
    for (spec, column) in [(tars, ".cls"), (parquet(&folder.path().join("rows")), ".label"), (list, ".label")] {
        let names = ClassNames::List(["x", "y", "z"].map(str::to_owned).to_vec());
        let classes =
            Classes { column: column.to_owned(), by: ClassBy::Number, names, templates: vec![Templates::One] };
        let words = ClassWords::read(&storage(), &classes).unwrap();
        // Captions that it may have are no part of it.
        let spec = DataSet { classes: Some(classes), ..spec };
        let data = Dataset::open(&storage(), "classes", &spec.as_classification().unwrap()).unwrap();
        let class = |i| words.class_of(&data.caption(SampleIndex(i), 0).unwrap());
        assert_eq!((data.len(), class(0), class(1)), (2, Ok(2), Ok(0)), "{column} of {:?}", spec.kind);
        assert_eq!(data.report().skipped_total(), 1);
    }
}
