//! Rows from Parquet: integers, floats, strings and lists of ids. It converts columns one stretch
//! of rows at a time and never holds more.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "Arrow has thirty types and we read a dozen: `check_type` refuses all others by name"
)]

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use table::Key;

use crate::error::{Place, shown};
use crate::reader::{BadRowCount, Rows};
use crate::text::{choose_columns, string_key};
use crate::{Batch, Error, Jagged, Labels, ReadOptions, Result, RowSelection, Schema};

/// Rows decoded at a time; with list columns of thousands of ids still a few tens of megabytes.
const STRETCH_ROWS_MAX: usize = 4096;

/// Rows of a Parquet file.
pub(crate) struct ParquetRows {
    path: PathBuf,
    decoder: ParquetRecordBatchReader,
    schema: Schema,
    places: Places,
    stretch: Option<Stretch>,
    row: usize, // of the stretch
    index: u64, // of the next row in the file
    rows_total: u64,
    selection: RowSelection,
    max_ind_range: Option<u64>,
    bad: BadRowCount,
}

/// Where the columns of the schema are: in the file, for messages, and in the decoded stretch.
struct Places {
    first_role: usize,            // 0, the label; 1 where that is left out
    file: Vec<usize>,             // label, dense, categorical, weights
    decoded: Vec<usize>,          // the same
    weighted: Vec<Option<usize>>, // for each feature the role of its weights
}

impl Places {
    fn file(&self, role: usize) -> usize {
        self.file[role - self.first_role]
    }

    fn decoded(&self, role: usize) -> usize {
        self.decoded[role - self.first_role]
    }
}

impl ParquetRows {
    pub(crate) fn open(path: &Path, options: &ReadOptions) -> Result<(Self, Schema)> {
        let file = File::open(path).map_err(Error::io(path))?;
        // without the writer's own Arrow schema strings are strings, whatever they were in memory
        let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, plain)
            .map_err(Error::parquet(path))?;
        let fields = builder.schema().fields().clone();
        let names: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
        // with weights asked for, their columns are no features; else they are refused as such
        let is_weights = |name: &String| {
            let feature = name.strip_suffix(Schema::WEIGHTS_SUFFIX).filter(|_| options.weights);
            feature.is_some_and(|feature| names.iter().any(|other| other == feature))
        };
        let others: Vec<String> = names.iter().filter(|n| !is_weights(n)).cloned().collect();
        let schema = choose_columns(path, &others, options)?;
        let rows_total = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
        if rows_total == 0 {
            return Err(Error::Empty { file: path.to_owned(), expected: "rows" });
        }
        let first_role = usize::from(options.labels == Labels::LeftOut);
        let wanted = std::iter::once(&schema.label).chain(&schema.dense).chain(&schema.categorical);
        let mut file_places: Vec<usize> = wanted
            .skip(first_role)
            .filter_map(|name| names.iter().position(|other| other == name))
            .collect();
        for (place, role) in file_places.iter().zip(first_role..) {
            check_type(path, &schema, role, fields[*place].data_type())?;
        }
        let mut weighted = vec![None; schema.categorical.len()];
        for (name, role) in schema.categorical.iter().zip(&mut weighted) {
            let name = format!("{name}{}", Schema::WEIGHTS_SUFFIX);
            let place = names.iter().position(|other| options.weights && *other == name);
            let Some(place) = place else { continue };
            check_weights_type(path, &name, fields[place].data_type())?;
            *role = Some(first_role + file_places.len());
            file_places.push(place);
        }
        if options.weights && weighted.iter().all(Option::is_none) {
            return Err(Error::Header {
                file: path.to_owned(),
                problem: format!(
                    "weights are asked for, and no column is named as a categorical one with {:?} \
                     behind it",
                    Schema::WEIGHTS_SUFFIX
                ),
                columns: names.join(", "),
            });
        }
        let mut ascending = file_places.clone();
        ascending.sort_unstable();
        let decoded = file_places.iter().map(|place| ascending.partition_point(|p| p < place));
        let decoded = decoded.collect();
        let places = Places { first_role, decoded, file: file_places, weighted };
        let mask = ProjectionMask::roots(builder.parquet_schema(), ascending);
        let decoder = builder
            .with_projection(mask)
            .with_batch_size(STRETCH_ROWS_MAX)
            .build()
            .map_err(Error::parquet(path))?;
        let rows = Self {
            path: path.to_owned(),
            decoder,
            schema: schema.clone(),
            places,
            stretch: None,
            row: 0,
            index: 0,
            rows_total,
            selection: options.rows,
            max_ind_range: options.max_ind_range,
            bad: BadRowCount::new(options.bad_rows),
        };
        Ok((rows, schema))
    }

    /// Decodes the next stretch, or tells that none is left.
    fn advance(&mut self) -> Result<bool> {
        self.row = 0;
        self.stretch = None;
        let Some(decoded) = self.decoder.next() else { return Ok(false) };
        let decoded = decoded.map_err(|error| Error::Parquet {
            file: self.path.clone(),
            source: parquet::errors::ParquetError::ArrowError(error.to_string()),
        })?;
        self.stretch = Some(Stretch::new(&decoded, &self.places, self.schema.dense.len()));
        Ok(true)
    }

    #[cold]
    fn error(&self, fault: Fault) -> Error {
        let label = std::iter::once(&self.schema.label);
        let names = label.chain(&self.schema.dense).chain(&self.schema.categorical).cloned();
        let features = self.schema.categorical.iter().zip(&self.places.weighted);
        let weights = features.filter(|(_, role)| role.is_some());
        let weights = weights.map(|(name, _)| format!("{name}{}", Schema::WEIGHTS_SUFFIX));
        let mut names = names.chain(weights);
        Error::Value {
            file: self.path.clone(),
            place: Place::Row(self.index),
            column: self.places.file(fault.role) + 1,
            name: names.nth(fault.role).unwrap_or_default(),
            found: fault.found,
            expected: fault.expected,
        }
    }
}

impl Rows for ParquetRows {
    fn fill(&mut self, rows_max: usize, batch: &mut Batch, dense: &mut Vec<f64>) -> Result<()> {
        while batch.rows() < rows_max {
            let Some(stretch) = self.stretch.as_ref().filter(|stretch| self.row < stretch.rows)
            else {
                if self.advance()? {
                    continue;
                }
                break;
            };
            if self.selection.contains(self.index) {
                match stretch.append(self.row, self.max_ind_range, batch, dense) {
                    Ok(()) if batch.rows() == 1 => batch.first_row = self.index,
                    Ok(()) => {}
                    Err(fault) => {
                        let error = self.error(fault);
                        self.bad.count(&self.path, error)?;
                    }
                }
            }
            self.row += 1;
            self.index += 1;
        }
        Ok(())
    }

    fn rows_skipped(&self) -> u64 {
        self.bad.rows()
    }

    fn progress(&self) -> f64 {
        self.index as f64 / self.rows_total as f64
    }
}

/// A value that its column may not hold; `role` counts label, dense, categorical, weights.
struct Fault {
    role: usize,
    found: String,
    expected: &'static str,
}

/// Some rows of all columns.
struct Stretch {
    rows: usize,
    label: Option<Floats>, // where it is read
    dense: Vec<Floats>,
    categorical: Vec<Bags>,
}

impl Stretch {
    fn new(decoded: &RecordBatch, places: &Places, dense: usize) -> Self {
        let column = |role: usize| decoded.column(places.decoded(role));
        let features = places.weighted.iter().enumerate();
        let categorical = features.map(|(feature, weights)| {
            let weights = weights.map(|role| Weights::new(role, column(role)));
            Bags::new(column(1 + dense + feature), weights)
        });
        Self {
            rows: decoded.num_rows(),
            label: (places.first_role == 0).then(|| Floats::new(column(0))),
            dense: (1..=dense).map(|role| Floats::new(column(role))).collect(),
            categorical: categorical.collect(),
        }
    }

    /// Appends one row, or nothing if one of its values is at fault.
    fn append(
        &self,
        row: usize,
        max_ind_range: Option<u64>,
        batch: &mut Batch,
        dense: &mut Vec<f64>,
    ) -> std::result::Result<(), Fault> {
        let fault = |role, found, expected| Err(Fault { role, found, expected });
        let label = match self.label.as_ref().map(|label| label.get(row)) {
            None => f32::NAN,
            Some(Some(label)) if (0.0..=1.0).contains(&label) => label as f32,
            Some(Some(label)) => return fault(0, label.to_string(), "a label from 0 to 1"),
            Some(None) => return fault(0, "null".to_owned(), "a label from 0 to 1"),
        };
        let dense_before = dense.len();
        for (column, values) in self.dense.iter().enumerate() {
            match values.get(row) {
                None => dense.push(f64::NAN),
                Some(x) if x.is_finite() => dense.push(x),
                Some(x) => {
                    dense.truncate(dense_before);
                    return fault(1 + column, x.to_string(), "a finite number or null");
                }
            }
        }
        for (feature, bags) in self.categorical.iter().enumerate() {
            let jagged = &mut batch.features[feature];
            let role = 1 + self.dense.len() + feature;
            let appended = bags.append(row, max_ind_range, jagged);
            let appended = appended.map_err(|(found, expected)| (role, found, expected));
            if let Err((role, found, expected)) =
                appended.and_then(|ids| bags.append_weights(row, ids, jagged))
            {
                dense.truncate(dense_before);
                batch.features[..=feature].iter_mut().for_each(Jagged::undo_row);
                return fault(role, found, expected);
            }
        }
        batch.features.iter_mut().for_each(Jagged::end_row);
        batch.labels.push(label);
        Ok(())
    }
}

/// A column of numbers, nulls apart.
struct Floats {
    values: Vec<f64>,
    array: ArrayRef, // for its nulls
}

impl Floats {
    fn new(array: &ArrayRef) -> Self {
        use DataType as T;
        fn all<P: ArrowPrimitiveType>(array: &ArrayRef, cast: fn(P::Native) -> f64) -> Vec<f64> {
            array.as_primitive::<P>().values().iter().map(|&x| cast(x)).collect()
        }
        let values = match array.data_type() {
            T::Boolean => {
                array.as_boolean().values().iter().map(|x| f64::from(u8::from(x))).collect()
            }
            T::Int8 => all::<Int8Type>(array, f64::from),
            T::Int16 => all::<Int16Type>(array, f64::from),
            T::Int32 => all::<Int32Type>(array, f64::from),
            T::Int64 => all::<Int64Type>(array, |x| x as f64),
            T::UInt8 => all::<UInt8Type>(array, f64::from),
            T::UInt16 => all::<UInt16Type>(array, f64::from),
            T::UInt32 => all::<UInt32Type>(array, f64::from),
            T::UInt64 => all::<UInt64Type>(array, |x| x as f64),
            T::Float32 => all::<Float32Type>(array, f64::from),
            T::Float64 => all::<Float64Type>(array, |x| x),
            other => unreachable!("{other} was refused when the file was opened"),
        };
        Self { values, array: ArrayRef::clone(array) }
    }

    fn get(&self, row: usize) -> Option<f64> {
        self.array.is_valid(row).then(|| self.values[row])
    }
}

/// A categorical column: one id a row, or a list of them.
struct Bags {
    offsets: Option<Vec<usize>>, // of lists
    lists: ArrayRef,             // for the nulls of lists
    ids: Ids,
    weights: Option<Weights>,
}

/// A column of weights: a number where its feature has one id a row, else a list of them.
struct Weights {
    role: usize,
    offsets: Option<Vec<usize>>, // of lists
    lists: ArrayRef,             // for the nulls of lists
    values: Floats,
}

enum Ids {
    Integers { values: Vec<i64>, unsigned: bool, array: ArrayRef },
    Strings(ArrayRef),
}

impl Bags {
    fn new(array: &ArrayRef, weights: Option<Weights>) -> Self {
        let lists = ArrayRef::clone(array);
        let (offsets, elements) = elements(array);
        Self { offsets, lists, ids: Ids::new(elements), weights }
    }

    /// Appends the keys of one row, without ending it, and tells how many.
    fn append(
        &self,
        row: usize,
        max_ind_range: Option<u64>,
        jagged: &mut Jagged,
    ) -> std::result::Result<usize, (String, &'static str)> {
        let places = span(self.offsets.as_deref(), &self.lists, row);
        let ids = places.len();
        if jagged.values.len() + places.len() >= u32::MAX as usize {
            let found = format!("{} ids after {}", places.len(), jagged.values.len());
            return Err((found, "fewer than 2^32 ids of a feature in a batch"));
        }
        for place in places {
            jagged.values.push(self.ids.key(place, max_ind_range)?);
        }
        Ok(ids)
    }

    /// Appends the weights of one row, which has so many `ids`. What is wrong comes with its role.
    fn append_weights(
        &self,
        row: usize,
        ids: usize,
        jagged: &mut Jagged,
    ) -> std::result::Result<(), (usize, String, &'static str)> {
        let Some(Weights { role, offsets, lists, values }) = &self.weights else { return Ok(()) };
        let places = span(offsets.as_deref(), lists, row);
        if places.len() != ids {
            let found = format!("{} weights of {ids} ids", places.len());
            return Err((*role, found, "a weight for each id"));
        }
        for place in places {
            // f32 may overflow where f64 did not
            match values.get(place).map(|weight| weight as f32) {
                Some(weight) if weight.is_finite() => jagged.weights.push(weight),
                Some(weight) => return Err((*role, weight.to_string(), "a finite weight")),
                None => return Err((*role, "null".to_owned(), "a finite weight")),
            }
        }
        Ok(())
    }
}

impl Weights {
    fn new(role: usize, array: &ArrayRef) -> Self {
        let (offsets, elements) = elements(array);
        Self { role, offsets, lists: ArrayRef::clone(array), values: Floats::new(&elements) }
    }
}

/// The offsets of a column of lists, and what its lists hold; of any other column, itself.
fn elements(array: &ArrayRef) -> (Option<Vec<usize>>, ArrayRef) {
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets().iter().map(|&offset| offset as usize);
            (Some(offsets.collect()), ArrayRef::clone(list.values()))
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let offsets = list.value_offsets().iter().map(|&offset| offset as usize);
            (Some(offsets.collect()), ArrayRef::clone(list.values()))
        }
        _ => (None, ArrayRef::clone(array)),
    }
}

/// Where the elements of a row are; a list that is null has none.
fn span(offsets: Option<&[usize]>, lists: &ArrayRef, row: usize) -> std::ops::Range<usize> {
    match offsets {
        None => row..row + 1,
        Some(_) if lists.is_null(row) => 0..0,
        Some(offsets) => offsets[row]..offsets[row + 1],
    }
}

impl Ids {
    fn new(array: ArrayRef) -> Self {
        use DataType as T;
        fn all<P: ArrowPrimitiveType>(array: &ArrayRef, cast: fn(P::Native) -> i64) -> Vec<i64> {
            array.as_primitive::<P>().values().iter().map(|&x| cast(x)).collect()
        }
        let unsigned = array.data_type().is_unsigned_integer();
        let values = match array.data_type() {
            T::Int8 => all::<Int8Type>(&array, i64::from),
            T::Int16 => all::<Int16Type>(&array, i64::from),
            T::Int32 => all::<Int32Type>(&array, i64::from),
            T::Int64 => all::<Int64Type>(&array, |x| x),
            T::UInt8 => all::<UInt8Type>(&array, i64::from),
            T::UInt16 => all::<UInt16Type>(&array, i64::from),
            T::UInt32 => all::<UInt32Type>(&array, i64::from),
            T::UInt64 => all::<UInt64Type>(&array, |x| x as i64), // the bits, and back in `key`
            _ => return Ids::Strings(array),
        };
        Ids::Integers { values, unsigned, array }
    }

    /// An integer is its own key and null is 0; a string is hashed and null is the empty one.
    fn key(
        &self,
        place: usize,
        max_ind_range: Option<u64>,
    ) -> std::result::Result<Key, (String, &'static str)> {
        match self {
            Ids::Integers { array, .. } if array.is_null(place) => Ok(Key(0)),
            Ids::Integers { values, unsigned, .. } => {
                let value = values[place];
                if value < 0 && !unsigned {
                    return Err((value.to_string(), "an id of 0 or more"));
                }
                let id = value as u64;
                Ok(Key(max_ind_range.map_or(id, |range| id % range)))
            }
            Ids::Strings(array) => Ok(string_key(string_bytes(array, place), max_ind_range)),
        }
    }
}

fn string_bytes(array: &ArrayRef, place: usize) -> &[u8] {
    if array.is_null(place) {
        return b"";
    }
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(place).as_bytes(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(place).as_bytes(),
        DataType::Binary => array.as_binary::<i32>().value(place),
        DataType::LargeBinary => array.as_binary::<i64>().value(place),
        other => unreachable!("{other} was refused when the file was opened"),
    }
}

fn check_weights_type(path: &Path, name: &str, found: &DataType) -> Result<()> {
    use DataType as T;
    let element = match found {
        T::List(element) | T::LargeList(element) => element.data_type(),
        other => other,
    };
    if element.is_integer() || matches!(element, T::Float32 | T::Float64) {
        return Ok(());
    }
    Err(Error::Header {
        file: path.to_owned(),
        problem: format!(
            "column {name:?} has the type {found}, expected weights: numbers or lists"
        ),
        columns: shown(name.as_bytes()),
    })
}

fn check_type(path: &Path, schema: &Schema, role: usize, found: &DataType) -> Result<()> {
    use DataType as T;
    let numeric = |t: &T| t.is_integer() || matches!(t, T::Float32 | T::Float64 | T::Boolean);
    let id =
        |t: &T| t.is_integer() || matches!(t, T::Utf8 | T::LargeUtf8 | T::Binary | T::LargeBinary);
    let dense = schema.dense.len();
    let (name, sound, expected) = if role == 0 {
        (&schema.label, numeric(found), "a number")
    } else if role <= dense {
        (&schema.dense[role - 1], numeric(found), "a number")
    } else {
        let sound = match found {
            T::List(element) | T::LargeList(element) => id(element.data_type()),
            other => id(other),
        };
        (&schema.categorical[role - 1 - dense], sound, "integers, strings or lists of them")
    };
    if sound {
        return Ok(());
    }
    Err(Error::Header {
        file: path.to_owned(),
        problem: format!("column {name:?} has the type {found}, expected {expected}"),
        columns: shown(name.as_bytes()),
    })
}
