//! Tables as people bring them, good and bad.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::{
    super::{
        Wanted,
        testing::{open_as, open_spec, refusal},
    },
    *,
};

struct File(tempfile::TempDir);

impl File {
    fn new(text: impl AsRef<[u8]>) -> File {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("t.csv"), text).unwrap();
        File(dir)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("t.csv")
    }

    fn spec(&self) -> String {
        format!("csv:{}", self.path().display())
    }
}

fn all(data: &dyn Dataset) -> HostBatch {
    let mut batch = HostBatch::read(data, Part::Train, 0..data.info().train).unwrap();
    let test = HostBatch::read(data, Part::Test, 0..data.info().test).unwrap();
    batch.features.extend(test.features);
    batch.labels.extend(test.labels);
    batch
}

#[test]
fn numbers_are_standardised_and_texts_one_hot() {
    let text = "size,colour,kind\n1,red,a\n3,blue,b\n1,red,a\n3,blue,b\n1,red,a\n3,blue,b\n1,red,a\n3,blue,b\n1,red,a\n3,blue,b\n";
    let file = File::new(text);
    let data = open_spec(&file.spec(), "");
    assert_eq!((data.info().train, data.info().test), (9, 1));
    assert_eq!(data.feature_names(), ["size", "colour=blue", "colour=red"]);
    assert_eq!(data.info().class_names, ["a", "b"]);
    let train = HostBatch::read(&*data, Part::Train, 0..9).unwrap();
    let sizes: Vec<f32> = train.features.chunks(3).map(|row| row[0]).collect();
    let mean = sizes.iter().sum::<f32>() / 9.0;
    let deviation = (sizes.iter().map(|x| x * x).sum::<f32>() / 9.0).sqrt();
    assert!(mean.abs() < 1e-6 && (deviation - 1.0).abs() < 1e-6, "{mean} {deviation}");
    for (row, label) in train.features.chunks(3).zip(&train.labels) {
        let expected: [f32; 2] = if *label == 0 { [0.0, 1.0] } else { [1.0, 0.0] };
        assert_eq!(row[1..], expected);
    }
}

#[test]
fn without_a_header_and_with_other_delimiters() {
    let rows: Vec<String> = (0..40).map(|i| format!("{};{};{}", i, i * i % 7, i % 3)).collect();
    let file = File::new(rows.join("\n"));
    let data = open_spec(&file.spec(), "");
    assert_eq!(data.info().form, Form::Classes { shape: [1, 1, 2], classes: 3 });
    assert_eq!(data.info().train + data.info().test, 40);
    let first = open_spec(&file.spec(), "[input]\nlabel = '1'\ntest_size = 0.25");
    assert_eq!((first.info().form.clone(), first.info().test), (Form::Classes { shape: [1, 1, 2], classes: 4 }, 10));
}

#[test]
fn a_number_is_predicted_when_the_task_wants_one() {
    let rows: Vec<String> = (0..50).map(|i| format!("{i},{}", f64::from(i) * 2.5)).collect();
    let file = File::new(rows.join("\n"));
    let data = open_as(&file.spec(), "", 0, Wanted::Numbers).unwrap();
    let Form::Numbers { unit, zero, .. } = data.info().form else { panic!("{:?}", data.info().form) };
    let batch = HostBatch::read(&*data, Part::Test, [0]).unwrap();
    let Scale { mean, deviation } = Scale { mean: zero, deviation: unit };
    let target = f64::from(batch.targets[0]) * deviation + mean;
    assert!((0..50).any(|i| (f64::from(i) * 2.5 - target).abs() < 1e-3), "{target}");
    assert!(
        refusal(&file.spec(), "").contains("column `1`: the label holds fractions"),
        "{}",
        refusal(&file.spec(), "")
    );
}

#[test]
fn an_empty_cell_takes_the_mean_when_asked() {
    let file = File::new("a,b,y\n1,x,0\n,z,1\n3,,0\n1,x,1\n3,z,0\n1,x,1\n3,z,0\n1,x,1\n3,z,0\n1,x,1\n");
    let told = refusal(&file.spec(), "");
    assert!(told.ends_with("t.csv: line 3: `a` is empty; fill it, or say --missing mean"), "{told}");
    let data = open_spec(&file.spec(), "[input]\nmissing = 'mean'");
    let rows = all(&*data).features;
    let rows: Vec<&[f32]> = rows.chunks(3).collect();
    assert!(rows.iter().any(|row| row[0] == 0.0), "the mean is 0");
    assert!(rows.iter().any(|row| row[1] > 0.0 && row[1] < 1.0 && (row[1] + row[2] - 1.0).abs() < 1e-6));
}

#[test]
fn decimal_commas_and_codes_are_understood() {
    let rows: String = (0..60).map(|i| format!("{},5;{}\n", i, ["007", "7"][i % 2])).collect();
    let data = open_spec(&File::new(format!("laenge;code\n{rows}")).spec(), "");
    assert_eq!(
        (data.feature_names(), &data.info().class_names[..]),
        (vec!["laenge".to_string()], &["007".into(), "7".into()][..])
    );
    let mixed: String =
        (0..100).map(|i| format!("{},{}\n", if i == 7 { "n/a".into() } else { (i % 5).to_string() }, i % 2)).collect();
    let notes = open_spec(&File::new(mixed).spec(), "").notes();
    assert_eq!(
        notes,
        ["`0`: 99 of 100 cells are numbers, but line 8 holds \"n/a\": each value is taken as a category"]
    );
}

#[test]
fn constant_columns_and_duplicates_are_reported() {
    let rows: Vec<String> = (0..60).map(|i| format!("{},7,{}", i % 5, i % 2)).collect();
    let file = File::new(format!("a,same,y\n{}", rows.join("\n")));
    let report = crate::data::inspect(&*open_spec(&file.spec(), ""), 1000).unwrap();
    assert_eq!((report.constant, report.duplicates), (vec!["same".to_string()], 6));
    assert!(report.warnings.iter().any(|w| w.contains("of no use: same")), "{:?}", report.warnings);
}

#[test]
fn what_is_wrong_is_named() {
    let many: String = (0..120).map(|i| format!("name{i},{}\n", i % 2)).collect();
    let ids: String = (0..300).map(|i| format!("1,id{i}\n")).collect();
    let nearly: String =
        (0..200).map(|i| if i == 51 { "oops,1\n".into() } else { format!("{}.5,{}\n", i, i % 2) }).collect();
    let open: String =
        (0..300).map(|i| if i == 30 { "\"oops,1\n".into() } else { format!("{}.5,{}\n", i, i % 2) }).collect();
    let cases: [(&str, &str, &str); 19] = [
        (&open, "", "line 31: a quote is opened here, and not closed for 270 lines"),
        (&nearly, "", "line 52: `0` holds \"oops\", but 199 of 200 cells are numbers; mend it"),
        ("a,y\n1e300,0\n2,1\n", "", "line 2: `a` is infinite, too large or not a number"),
        ("a,b,y\n,1,0\n,2,1\n", "[input]\nmissing = 'mean'", "column `a`: is empty in every row"),
        ("a,b,y\n1,1,0\n2,2,1\n", "[input]\nlabel = 'y'\ndrop = ['y']", "--drop y: it is the label"),
        ("", "", "it has no rows"),
        ("a,b\n", "", "cannot be split in two"),
        ("x\n1\n2\n", "", "found one column only"),
        ("1,2,0\n3,4\n5,6,1\n", "", "line 2: 2 cells, but the first row has 3"),
        ("a,b,y\n1,2,0\n3,NaN,1\n", "", "line 3: `b` is infinite, too large or not a number"),
        ("a,b,y\n1,2,0\n3,inf,1\n", "", "line 3: `b` is infinite, too large or not a number"),
        ("a,y\n1,0\n2,\n", "", "line 3: the label `y` is empty"),
        ("a,y\n1,0\n2,0\n", "", "column `y`: the label is the same in every row"),
        (&many, "", "column `0`: holds text with more than 50 values; leave it out with --drop 0"),
        (&ids, "", "column `1`: the label has more than 100 values; choose another --label"),
        ("a,b,y\n1,2,0\n3,4,1\n", "[input]\nlabel = 'z'", "--label z: the columns are a, b, y"),
        ("a,b,y\n1,2,0\n3,4,1\n", "[input]\ndrop = ['a', 'b']", "no column is left to predict from"),
        ("a,b\0,y\n1,2,0\n", "", "at offset 3: a zero byte: this is no text"),
        ("size,y\n1,0\n2,1\n", "[input]\nlabel = 'szie'", "did you mean `size`?"),
    ];
    for (text, settings, words) in cases {
        let file = File::new(text);
        let told = refusal(&file.spec(), settings);
        assert!(told.contains(words) && told.contains("t.csv"), "{text:.30?}: {told}");
    }
    let file = File::new(b"a,b,y\n1,\xff\xfe,0\n2,3,1\n");
    let told = refusal(&file.spec(), "");
    assert!(told.ends_with("line 2: a cell is no UTF-8 text"), "{told}");
    assert!(refusal("csv:", "").contains("needs a file: csv:FILE"));
    assert!(refusal("csv:/none", "").contains("cannot read /none"));
}

fn write_parquet(path: &Path, message: &str, nested: bool) {
    use parquet::{
        data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type},
        file::writer::SerializedFileWriter,
        schema::parser::parse_message_type,
    };
    let schema = std::sync::Arc::new(parse_message_type(message).unwrap());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
    for group in 0..3 {
        let mut rows = writer.next_row_group().unwrap();
        let numbers: Vec<f64> = (0..20).map(|i| f64::from(i + group)).collect();
        // One row in ten has no number.
        let present: Vec<i16> = (0..20).map(|i| i16::from(i % 10 != 3)).collect();
        let some: Vec<f64> = numbers.iter().zip(&present).filter(|(_, p)| **p == 1).map(|(n, _)| *n).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        let (values, levels) = if nested { (&numbers, None) } else { (&some, Some(&present[..])) };
        column.typed::<DoubleType>().write_batch(values, levels, None).unwrap();
        column.close().unwrap();
        let texts: Vec<ByteArray> = (0..20).map(|i| if i % 2 == 0 { "even" } else { "odd" }.into()).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        let labels: Vec<i64> = (0..20).map(|i| i % 2).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, None, None).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

const FLAT: &str = "message t { optional double x; required binary kind (STRING); required int64 y; }";

#[test]
fn parquet_is_read_like_csv() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    write_parquet(&path, FLAT, false);
    let spec = format!("parquet:{}", path.display());
    assert!(
        refusal(&spec, "").ends_with("row 4: `x` is empty; fill it, or say --missing mean"),
        "{}",
        refusal(&spec, "")
    );
    let data = open_spec(&spec, "[input]\nmissing = 'mean'");
    assert_eq!((data.info().train, data.info().test), (54, 6));
    assert_eq!(data.feature_names(), ["x", "kind=even", "kind=odd"]);
    let batch = all(&*data);
    for (row, label) in batch.features.chunks(3).zip(&batch.labels) {
        assert_eq!(row[2], *label as f32);
    }
}

#[test]
fn parquet_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let spec = format!("parquet:{}", path.display());
    let nested =
        "message t { required group pair { required double a; required binary b (STRING); } required int64 y; }";
    write_parquet(&path, nested, true);
    assert!(
        refusal(&spec, "")
            .contains("column `pair`: holds neither numbers nor text, or is nested; leave it out with --drop pair"),
        "{}",
        refusal(&spec, "")
    );
    fs::write(&path, "PAR1 nothing").unwrap();
    assert!(refusal(&spec, "").contains("t.parquet"), "{}", refusal(&spec, ""));
    write_parquet(&path, FLAT, false);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    assert!(refusal(&spec, "").contains("t.parquet"), "{}", refusal(&spec, ""));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let file = File::new(bytes);
        let _ = open_as(&file.spec(), "", 0, Wanted::Classes);
    }

    /// Text that looks like a table: whatever it holds, all features are finite.
    #[test]
    fn random_tables_do_no_harm(text in "([0-9a-c.,;\"\n -]|NaN|1e400|é){0,200}", mean: bool) {
        let file = File::new(&text);
        let settings = if mean { "[input]\nmissing = 'mean'" } else { "" };
        if let Ok(data) = open_as(&file.spec(), settings, 0, Wanted::Classes) {
            prop_assert!(all(&*data).features.iter().all(|value| value.is_finite()), "{:?}", text);
        }
    }

    #[test]
    fn broken_parquet_does_no_harm(at in 0usize..2000, bytes in proptest::collection::vec(any::<u8>(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        write_parquet(&path, FLAT, false);
        let mut whole = fs::read(&path).unwrap();
        let at = at % whole.len();
        let end = (at + bytes.len()).min(whole.len());
        whole.splice(at..end, bytes);
        fs::write(&path, whole).unwrap();
        let _ = open_as(&format!("parquet:{}", path.display()), "[input]\nmissing = 'mean'", 0, Wanted::Classes);
    }
}
