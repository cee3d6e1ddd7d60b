//! `dlrm-worker predict`: a probability a line, in input order. It computes as `evaluate` does.

use std::fs::File;
use std::io::{BufWriter, Write};

use dataset::Labels;
use wire::Session;

use crate::cli::PredictArgs;
use crate::evaluate::for_each_prediction;
use crate::report::write_whole_by;
use crate::setup::Inference;
use crate::{Error, Result};

/// Predicts as `args` say. The file appears when it is whole.
pub fn predict_command(args: &PredictArgs, session: &dyn Session) -> Result<String> {
    let mut inference = Inference::begin(&args.model, &args.data, Labels::LeftOut, session)?;
    let reader = dataset::open(&inference.source, &inference.read)?;
    let doing = "write predictions";
    let rows = write_whole_by(&args.output, doing, |partial| {
        let write = || Error::file(doing, &args.output);
        let mut file = BufWriter::new(File::create(partial).map_err(write())?);
        let (tables, model) = (&inference.tables, &mut inference.model);
        let each = |probabilities: &[f32], _: &[f32]| {
            for p in probabilities {
                writeln!(file, "{p}").map_err(write())?;
            }
            Ok(())
        };
        let pooling = inference.card.pooling;
        let rows = for_each_prediction(reader, tables, session, model, pooling, each)?;
        file.flush().map_err(write())?;
        Ok(rows)
    })?;
    Ok(format!("{rows} probabilities in {}\n", args.output.display()))
}
