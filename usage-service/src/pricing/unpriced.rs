//! Why a request has no cost.

/// Why a request has no cost. It is counted as unpriced, never taken for free.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unpriced {
    #[error("the price book has no such provider")]
    UnknownProvider,
    #[error("the price book has no such model of this provider")]
    UnknownModel,
    #[error("other_units: the price book has no unit {unit:?}")]
    UnknownUnit { unit: Box<str> },
    #[error("other_units: {unit} is counted by the event itself, or was given twice")]
    RepeatedUnit { unit: Box<str> },
    #[error("other_units: the model has no price for {unit}")]
    UnitNotPriced { unit: Box<str> },
    #[error("the model is charged by {units}, of which nothing was counted")]
    NothingCharged { units: Box<str> },
    #[error("other_units: {unit} has its own price and must be counted too, zero if there were none")]
    UnitMissing { unit: Box<str> },
    #[error("{whole} is less than what was counted as parts of it")]
    PartsExceedWhole { whole: Box<str> },
    #[error("{unit} is negative")]
    Negative { unit: Box<str> },
    #[error("the cost is more than 9,223,372,036 dollars")]
    TooLarge,
}

impl Unpriced {
    /// The text that is kept with a request. Such texts are kept once each, and for ever: a name that its writer made up
    /// stays in the request.
    pub fn kept(&self) -> String {
        match self {
            Self::UnknownUnit { .. } => "other_units: the price book has no such unit".to_owned(),
            all_others => all_others.to_string(),
        }
    }

    /// One word for a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownProvider => "unknown_provider",
            Self::UnknownModel => "unknown_model",
            Self::UnknownUnit { .. } => "unknown_unit",
            Self::RepeatedUnit { .. } => "repeated_unit",
            Self::UnitNotPriced { .. } => "unit_not_priced",
            Self::NothingCharged { .. } => "nothing_charged",
            Self::UnitMissing { .. } => "unit_missing",
            Self::PartsExceedWhole { .. } => "parts_exceed_whole",
            Self::Negative { .. } => "negative",
            Self::TooLarge => "too_large",
        }
    }
}
