//! Where data comes from, as a command line names it. It opens nothing.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{Error, SyntheticSpec, TransformKind};

/// A file of a known format, or the generator.
///
/// Written `criteo:PATH`, `tsv:PATH`, `parquet:PATH`, `cache:PATH` or `synthetic:SPEC`. Whether a
/// text file is compressed with gzip is told by its first bytes, not by its name.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Criteo's own text: no header; a label, 13 integers, 26 hexadecimal tokens; tabs between.
    Criteo {
        /// The file.
        path: PathBuf,
    },
    /// Text with a header line of column names; tabs between.
    Tsv {
        /// The file.
        path: PathBuf,
    },
    /// Parquet with named columns.
    Parquet {
        /// The file.
        path: PathBuf,
    },
    /// Batches that were parsed before and written by [`crate::write_cache`].
    Cache {
        /// The file.
        path: PathBuf,
    },
    /// Rows made on the fly.
    Synthetic(SyntheticSpec),
}

impl Source {
    /// The dense transform that is meant when none is named: `log1p` for Criteo's counts and their
    /// likeness, `none` for columns that someone has prepared.
    pub fn usual_transform(&self) -> TransformKind {
        match self {
            Source::Criteo { .. } | Source::Synthetic(_) => TransformKind::Log1p,
            // a cache's values are transformed already; its card tells how
            Source::Tsv { .. } | Source::Parquet { .. } | Source::Cache { .. } => {
                TransformKind::None
            }
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Argument {
            what: "data source",
            found: text.to_owned(),
            expected: "criteo:PATH, tsv:PATH, parquet:PATH, cache:PATH or synthetic:SPEC"
                .to_owned(),
        };
        let (format, rest) = text.split_once(':').ok_or_else(wrong)?;
        if rest.is_empty() && format != "synthetic" {
            return Err(wrong());
        }
        let path = PathBuf::from(rest);
        match format {
            "criteo" => Ok(Source::Criteo { path }),
            "tsv" => Ok(Source::Tsv { path }),
            "parquet" => Ok(Source::Parquet { path }),
            "cache" => Ok(Source::Cache { path }),
            "synthetic" => Ok(Source::Synthetic(rest.parse()?)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Criteo { path } => write!(f, "criteo:{}", path.display()),
            Source::Tsv { path } => write!(f, "tsv:{}", path.display()),
            Source::Parquet { path } => write!(f, "parquet:{}", path.display()),
            Source::Cache { path } => write!(f, "cache:{}", path.display()),
            Source::Synthetic(spec) => write!(f, "synthetic:{spec}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_reads_back_as_it_is_written() {
        for text in [
            "criteo:/data/day:0.gz",
            "tsv:flights.tsv.gz",
            "parquet:a b.parquet",
            "cache:day_0.cache",
            "synthetic:scale=0.01,rows=4000000,seed=1",
            "synthetic:scale=0.5,rows=10,seed=7,test-rows=3",
            "synthetic:scale=0.5,rows=10,seed=7,indices=1..5",
            "synthetic:scale=0.5,rows=10,seed=7,test-rows=3,indices=mlperf",
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(source.to_string(), text);
        }
    }

    #[test]
    fn an_unknown_format_or_an_empty_path_is_refused_with_the_forms() {
        for text in ["", "flights.tsv", "csv:a", "tsv:", "cache:", "criteo:", "synthetic:rows=x"] {
            let message = text.parse::<Source>().unwrap_err().to_string();
            assert!(message.contains("expected"), "{message}");
        }
    }
}
