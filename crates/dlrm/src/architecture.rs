//! The shape of a model, in the words of facebookresearch/dlrm's command line. It holds no weight.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Everything that fixes the shapes and functions of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Architecture {
    /// Floats of an embedding row.
    pub sparse_feature_size: usize,
    /// Number of categorical features.
    pub features: usize,
    /// Widths of the bottom MLP, the number of dense values first.
    pub mlp_bottom: Vec<usize>,
    /// Widths of the top MLP without its input, which follows from the interaction; the last is 1.
    pub mlp_top: Vec<usize>,
    /// How dense and categorical features meet.
    pub interaction: Interaction,
    /// What is minimised.
    pub loss: Loss,
}

/// How the bottom MLP's output x and the pooled embeddings e1, …, eM meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interaction {
    /// x, then the dot product of each pair among x, e1, …, eM.
    Dot,
    /// The same, with each vector's product with itself.
    DotWithItself,
    /// x, e1, …, eM one after the other.
    Cat,
}

/// What is minimised, as a mean over the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Binary cross-entropy; the logarithms end at -100, as PyTorch's `BCELoss` has it.
    Bce,
    /// Squared error of the probability.
    Mse,
}

impl Architecture {
    /// The widest layer and the most features a model may have: a typing error ends here and not
    /// in an allocation of terabytes.
    pub const WIDTH_MAX: usize = 1 << 16;

    /// Checks every field.
    pub fn validate(&self) -> Result<()> {
        let range = |field, found: usize| match found {
            1..=Self::WIDTH_MAX => Ok(()),
            _ => Err(bad(field, found.to_string(), format!("1 to {}", Self::WIDTH_MAX))),
        };
        range("sparse_feature_size", self.sparse_feature_size)?;
        range("features", self.features)?;
        if self.mlp_bottom.len() < 2 {
            let expected = "the dense width and at least one layer, as 13-512-16".to_owned();
            return Err(bad("mlp_bottom", join(&self.mlp_bottom), expected));
        }
        self.mlp_bottom.iter().try_for_each(|&width| range("mlp_bottom", width))?;
        self.mlp_top.iter().try_for_each(|&width| range("mlp_top", width))?;
        if self.mlp_top.last() != Some(&1) {
            let expected = "a last layer of 1, the probability".to_owned();
            return Err(bad("mlp_top", join(&self.mlp_top), expected));
        }
        let dot = match self.interaction {
            Interaction::Dot | Interaction::DotWithItself => true,
            Interaction::Cat => false,
        };
        if dot && self.bottom_output() != self.sparse_feature_size {
            let expected = format!(
                "a last layer of sparse_feature_size ({}), for the dot products",
                self.sparse_feature_size
            );
            return Err(bad("mlp_bottom", join(&self.mlp_bottom), expected));
        }
        Ok(())
    }

    /// Dense values of a sample.
    pub fn dense_width(&self) -> usize {
        self.mlp_bottom[0]
    }

    /// Width of the top MLP's input.
    pub fn interaction_width(&self) -> usize {
        let (x, n) = (self.bottom_output(), self.features + 1);
        match self.interaction {
            Interaction::Dot => x + n * (n - 1) / 2,
            Interaction::DotWithItself => x + n * (n + 1) / 2,
            Interaction::Cat => self.feature_width(),
        }
    }

    /// Width of x, e1, …, eM one after the other.
    pub(crate) fn feature_width(&self) -> usize {
        self.bottom_output() + self.features * self.sparse_feature_size
    }

    pub(crate) fn bottom_output(&self) -> usize {
        self.mlp_bottom[self.mlp_bottom.len() - 1]
    }

    /// Widths of the top MLP with its input first.
    pub(crate) fn top_widths(&self) -> Vec<usize> {
        std::iter::once(self.interaction_width()).chain(self.mlp_top.iter().copied()).collect()
    }
}

/// Widths as they are typed: `13-512-256-64-16`.
pub fn parse_widths(text: &str) -> Result<Vec<usize>> {
    let parse = |part: &str| {
        let width = part.parse().ok().filter(|&width| width > 0);
        width.ok_or_else(|| {
            let expected = "positive numbers joined by '-', as 13-512-256-64-16".to_owned();
            bad("widths", format!("{text:?} (at {part:?})"), expected)
        })
    };
    text.split('-').map(parse).collect()
}

fn join(widths: &[usize]) -> String {
    let words: Vec<String> = widths.iter().map(ToString::to_string).collect();
    format!("{:?}", words.join("-"))
}

fn bad(field: &'static str, found: String, expected: String) -> Error {
    Error::Field { field, found, expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kaggle(interaction: Interaction) -> Architecture {
        Architecture {
            sparse_feature_size: 16,
            features: 26,
            mlp_bottom: parse_widths("13-512-256-64-16").unwrap(),
            mlp_top: parse_widths("512-256-1").unwrap(),
            interaction,
            loss: Loss::Bce,
        }
    }

    #[test]
    fn the_top_mlps_input_follows_from_the_interaction() {
        assert_eq!(kaggle(Interaction::Dot).interaction_width(), 16 + 351);
        assert_eq!(kaggle(Interaction::DotWithItself).interaction_width(), 16 + 378);
        assert_eq!(kaggle(Interaction::Cat).interaction_width(), 27 * 16);
        assert_eq!(kaggle(Interaction::Dot).top_widths(), [367, 512, 256, 1]);
    }

    #[test]
    fn every_fault_names_its_field() {
        let base = kaggle(Interaction::Dot);
        base.validate().unwrap();
        let cases = [
            ("sparse_feature_size", Architecture { sparse_feature_size: 0, ..base.clone() }),
            ("features", Architecture { features: 0, ..base.clone() }),
            ("mlp_bottom", Architecture { mlp_bottom: vec![13], ..base.clone() }),
            ("mlp_bottom", Architecture { mlp_bottom: vec![13, 0, 16], ..base.clone() }),
            ("mlp_bottom", Architecture { mlp_bottom: vec![13, 512, 15], ..base.clone() }),
            ("mlp_top", Architecture { mlp_top: vec![], ..base.clone() }),
            ("mlp_top", Architecture { mlp_top: vec![512, 2], ..base.clone() }),
            ("mlp_top", Architecture { mlp_top: vec![1 << 20, 1], ..base.clone() }),
        ];
        for (field, architecture) in cases {
            let error = architecture.validate().unwrap_err();
            assert!(matches!(&error, Error::Field { field: f, .. } if *f == field), "{error}");
        }
        let other_width =
            Architecture { mlp_bottom: vec![13, 8], interaction: Interaction::Cat, ..base };
        other_width.validate().unwrap();
        assert_eq!(other_width.interaction_width(), 8 + 26 * 16);
    }

    #[test]
    fn widths_are_read_or_refused_with_the_place() {
        assert_eq!(parse_widths("13-512-16").unwrap(), [13, 512, 16]);
        assert_eq!(parse_widths("1").unwrap(), [1]);
        for text in ["", "13-", "13--2", "a-1", "13-0", "1-2 "] {
            let error = parse_widths(text).unwrap_err().to_string();
            assert!(error.contains("positive numbers"), "{error}");
        }
    }
}
