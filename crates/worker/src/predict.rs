//! `dlrm-worker predict`: a probability a line, in input order. It computes as `evaluate` does.

use std::fs::File;
use std::io::{BufWriter, Write};

use wire::Session;

use crate::cli::PredictArgs;
use crate::evaluate::for_each_prediction;
use crate::report::partial_path;
use crate::setup::Inference;
use crate::{Error, Result};

/// Predicts as `args` say. The file appears when it is whole.
pub fn predict_command(args: &PredictArgs, session: &dyn Session) -> Result<String> {
    let mut inference = Inference::begin(&args.model, &args.data, session)?;
    let reader = dataset::open(&args.data.data, &inference.read)?;
    let partial = partial_path(&args.output);
    let write = || Error::file("write predictions", &args.output);
    let mut file = BufWriter::new(File::create(&partial).map_err(write())?);
    let (tables, model) = (&inference.tables, &mut inference.model);
    let predicted = for_each_prediction(reader, tables, session, model, |probabilities, _| {
        for p in probabilities {
            writeln!(file, "{p}").map_err(write())?;
        }
        Ok(())
    });
    let finished = predicted.and_then(|rows| {
        file.into_inner().map_err(|e| e.into_error()).and_then(|f| f.sync_all()).map_err(write())?;
        std::fs::rename(&partial, &args.output).map_err(write())?;
        Ok(rows)
    });
    if finished.is_err() {
        let _ = std::fs::remove_file(&partial); // the first error is the one to tell
    }
    let rows = finished?;
    Ok(format!("{rows} probabilities in {}\n", args.output.display()))
}
