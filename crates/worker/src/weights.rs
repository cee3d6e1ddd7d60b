//! Weights in and out, as safetensors under facebookresearch/dlrm's names: the dense part beside a
//! model's card, or everything in one file. It streams: one table, or one chunk of it, is in
//! memory.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use dlrm::Model;
use safetensors::tensor::{Dtype, Metadata, View, serialize_to_file};
use table::{Key, KeyBatch, RowStatus, TableId};
use wire::Session;

use crate::card::Card;
use crate::cli::ExportArgs;
use crate::evaluate::check_whole;
use crate::report::{write_whole, write_whole_by};
use crate::setup::{find_tables, parse_rows};
use crate::{Error, Result};

const DENSE_FILE: &str = "dense.safetensors";
/// Rows that travel in one request while weights come in or go out.
const CHUNK_ROWS: u64 = 1 << 16;
/// The largest header of a safetensors file that is read.
const HEADER_BYTES_MAX: u64 = 100 << 20;

/// Writes a trained model out whole.
pub fn export_command(args: &ExportArgs, session: &dyn Session) -> Result<String> {
    let mut card = Card::load(&args.load_model)?;
    let model = load_model(&args.load_model, &card, 1, 1)?;
    if let Some(rows) = &args.arch_embedding_size {
        card.embedding_rows = Some(parse_rows(rows, card.tables().len())?);
    }
    let tables = find_tables(&card, session)?;
    save_whole(&args.output, &card, &model, &tables, session)?;
    Ok(format!("{} tensors in {}\n", tensors_of(&card, &model), args.output.display()))
}

/// Saves to a folder (card and dense part), or, where the name says so, to one safetensors file.
pub(crate) fn save(
    path: &Path,
    card: &Card,
    model: &Model,
    tables: &[TableId],
    session: &dyn Session,
) -> Result<()> {
    if is_whole(path) {
        return save_whole(path, card, model, tables, session);
    }
    std::fs::create_dir_all(path).map_err(Error::file("make folder", path))?;
    write_whole(&path.join(DENSE_FILE), "write weights", &model.to_safetensors()?)?;
    card.save(path)
}

/// Whether a model saved under this name is one file with everything in it.
pub(crate) fn is_whole(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

/// The model of a folder, its dense weights and dense optimizer state included.
pub(crate) fn load_model(
    folder: &Path,
    card: &Card,
    batch_max: usize,
    threads: usize,
) -> Result<Model> {
    let architecture = card.architecture.clone();
    let mut model = Model::new(architecture, card.dense_optimizer, batch_max, card.seed, threads)?;
    let path = folder.join(DENSE_FILE);
    let bytes = std::fs::read(&path).map_err(Error::file("read weights", &path))?;
    model
        .load_safetensors(&bytes)
        .map_err(|error| Error::Weights { path, message: error.to_string() })?;
    Ok(model)
}

fn tensors_of(card: &Card, model: &Model) -> usize {
    model.parameters().count() + card.tables().len()
}

fn save_whole(
    path: &Path,
    card: &Card,
    model: &Model,
    tables: &[TableId],
    session: &dyn Session,
) -> Result<()> {
    let Some(rows) = &card.embedding_rows else {
        return Err(Error::Input(
            "a .safetensors file holds each table by id, so the rows of each table must be known: \
             give --arch-embedding-size N-N-... (tables of hashed keys have no dense ids)"
                .into(),
        ));
    };
    let dim = card.architecture.sparse_feature_size;
    let failed = RefCell::new(None);
    let mut tensors: Vec<(String, Tensor<'_>)> = model
        .parameters()
        .map(|p| (p.name.to_owned(), Tensor::dense(p.shape, p.values())))
        .collect();
    for (t, (&table, &rows)) in tables.iter().zip(rows).enumerate() {
        let rows = TableRows { session, table, rows, dim, failed: &failed };
        tensors.push((format!("emb_l.{t}.weight"), Tensor::table(rows)));
    }
    write_whole_by(path, "write weights", |partial| {
        let written = serialize_to_file(tensors, None, partial);
        match failed.take() {
            Some(error) => Err(error),
            None => written.map_err(|error| Error::Weights {
                path: path.to_owned(),
                message: error.to_string(),
            }),
        }
    })
}

/// One tensor of the file being written; a table's rows are fetched when their turn comes.
struct Tensor<'a> {
    shape: Vec<usize>,
    source: TensorSource<'a>,
}

enum TensorSource<'a> {
    Dense(Cow<'a, [f32]>),
    Table(TableRows<'a>),
}

struct TableRows<'a> {
    session: &'a dyn Session,
    table: TableId,
    rows: u64,
    dim: usize,
    /// The writer can't be told of an error; the caller looks here before it keeps the file.
    failed: &'a RefCell<Option<Error>>,
}

impl<'a> Tensor<'a> {
    fn dense(shape: &[usize], values: Cow<'a, [f32]>) -> Self {
        Self { shape: shape.to_vec(), source: TensorSource::Dense(values) }
    }

    fn table(rows: TableRows<'a>) -> Self {
        Self { shape: vec![rows.rows as usize, rows.dim], source: TensorSource::Table(rows) }
    }
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.source {
            TensorSource::Dense(values) => Cow::Owned(le_bytes(values)),
            TensorSource::Table(rows) => Cow::Owned(rows.bytes()),
        }
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

impl TableRows<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.rows as usize * self.dim * size_of::<f32>());
        let mut start = 0;
        while start < self.rows && self.failed.borrow().is_none() {
            let end = (start + CHUNK_ROWS).min(self.rows);
            match self.chunk(start, end) {
                Ok(rows) => bytes.extend_from_slice(&le_bytes(&rows)),
                Err(error) => *self.failed.borrow_mut() = Some(error),
            }
            start = end;
        }
        bytes
    }

    fn chunk(&self, start: u64, end: u64) -> Result<Vec<f32>> {
        let keys = id_batch(self.table, start, end)?;
        let mut rows = vec![0.0; keys.len() * self.dim];
        let mut statuses = vec![RowStatus::Failed; keys.len()];
        self.session
            .lookup(&keys, &mut rows, &mut statuses)
            .and_then(|()| check_whole(&statuses))
            .map_err(Error::session(format_args!("export {}", self.table)))?;
        Ok(rows)
    }
}

/// Puts the weights of a safetensors file into the model and the tables; returns each table's rows.
pub fn init_from(
    path: &Path,
    model: &mut Model,
    tables: &[TableId],
    session: &dyn Session,
) -> Result<()> {
    let mut file = WeightsFile::open(path)?;
    let dim = model.architecture().sparse_feature_size;
    file.check_names(model, tables.len())?;
    let names: Vec<(String, Vec<usize>)> =
        model.parameters().map(|p| (p.name.to_owned(), p.shape.to_vec())).collect();
    for (name, shape) in names {
        let found = file.shape(&name)?;
        if found != shape {
            return Err(file.fault(format!("{name} is {found:?}, the model's is {shape:?}")));
        }
        let values = file.floats(&name, 0, shape.iter().product::<usize>() as u64)?;
        model.set_parameter(&name, &values)?;
    }
    for (t, &table) in tables.iter().enumerate() {
        let name = format!("emb_l.{t}.weight");
        let rows = file.table_rows(&name, dim)?;
        let mut start = 0;
        while start < rows {
            let end = (start + CHUNK_ROWS).min(rows);
            let values = file.floats(&name, start * dim as u64, (end - start) * dim as u64)?;
            session
                .assign(&id_batch(table, start, end)?, &values)
                .map_err(Error::session(format_args!("assign {name}")))?;
            start = end;
        }
    }
    Ok(())
}

/// The rows of each table in a safetensors file, by its header alone.
pub fn embedding_rows(path: &Path, tables: usize, dim: usize) -> Result<Vec<u64>> {
    let file = WeightsFile::open(path)?;
    (0..tables).map(|t| file.table_rows(&format!("emb_l.{t}.weight"), dim)).collect()
}

struct WeightsFile<'a> {
    path: &'a Path,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl<'a> WeightsFile<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let read = || Error::file("read weights", path);
        let fault = |message: String| Error::Weights { path: path.to_owned(), message };
        let mut file = File::open(path).map_err(read())?;
        let file_bytes = file.metadata().map_err(read())?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(read())?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX || header_bytes + 8 > file_bytes {
            return Err(fault(format!(
                "not a safetensors file: it names a header of {header_bytes} bytes and has \
                 {file_bytes}"
            )));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(read())?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| fault(format!("not a safetensors header: {error}")))?;
        let data_start = 8 + header_bytes;
        let expected = data_start + metadata.data_len() as u64;
        if expected != file_bytes {
            let message =
                format!("the file has {file_bytes} bytes, its header describes {expected}");
            return Err(fault(message));
        }
        Ok(Self { path, file, metadata, data_start })
    }

    fn fault(&self, message: String) -> Error {
        Error::Weights { path: self.path.to_owned(), message }
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let Some(info) = self.metadata.info(name) else {
            return Err(self.fault(format!("no tensor named {name}")));
        };
        if info.dtype != Dtype::F32 {
            return Err(self.fault(format!("{name} is {:?}, expected F32", info.dtype)));
        }
        Ok(info.shape.clone())
    }

    fn table_rows(&self, name: &str, dim: usize) -> Result<u64> {
        match self.shape(name)?[..] {
            [rows, width] if width == dim => Ok(rows as u64),
            ref other => Err(self.fault(format!("{name} is {other:?}, expected [rows, {dim}]"))),
        }
    }

    /// Every tensor of the file must have a place: a name too many is another model's file.
    fn check_names(&self, model: &Model, tables: usize) -> Result<()> {
        let known = |name: &str| {
            model.parameters().any(|p| p.name == name)
                || (0..tables).any(|t| name == format!("emb_l.{t}.weight"))
        };
        match self.metadata.offset_keys().iter().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(self.fault(format!("{name} has no place in this model"))),
        }
    }

    fn floats(&mut self, name: &str, start: u64, floats: u64) -> Result<Vec<f32>> {
        let Some(info) = self.metadata.info(name) else {
            return Err(self.fault(format!("no tensor named {name}")));
        };
        let place = self.data_start + info.data_offsets.0 as u64 + 4 * start;
        let mut bytes = vec![0; 4 * floats as usize];
        self.file
            .seek(SeekFrom::Start(place))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(Error::file("read weights", self.path))?;
        let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(floats.collect())
    }
}

fn id_batch(table: TableId, start: u64, end: u64) -> Result<KeyBatch> {
    let ids: Vec<Key> = (start..end).map(Key).collect();
    let mut keys = KeyBatch::new();
    keys.push_run(table, &ids).map_err(|error| Error::Input(error.to_string()))?;
    Ok(keys)
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
