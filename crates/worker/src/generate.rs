//! `dlrm-worker generate`: writes generated data to a file and tells the best that is to be had on
//! it. The data itself is `dataset`'s.

use std::fmt::Write as _;

use dataset::{RowSelection, Source};

use crate::cli::GenerateArgs;
use crate::{Error, Result};

/// Generates as `args` say and returns the lines for a person.
pub fn generate_command(args: &GenerateArgs) -> Result<String> {
    let source = args.lookups.apply(&args.data)?;
    let Source::Synthetic(spec) = &source else {
        return Err(Error::Input(format!(
            "--data {}: expected synthetic:NAME=VALUE,...",
            args.data
        )));
    };
    let mut text = String::new();
    if let Some(output) = &args.output {
        let rows = dataset::write(spec, RowSelection::All, output)?;
        let _ = writeln!(text, "wrote {rows} rows to {output}");
    }
    let bayes = spec.bayes(RowSelection::All)?;
    let _ = writeln!(
        text,
        "the best possible on {} rows: AUC {:.4}, logloss {:.4}",
        bayes.rows, bayes.auc, bayes.logloss
    );
    Ok(text)
}
