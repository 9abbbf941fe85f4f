//! The one shape of every refusal.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of refusal it is, stable for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: malformed JSON, an unknown field, a value outside of its limits.
    InvalidRequest,
    /// 403: the certificate's role may not do this.
    Forbidden,
    /// 403: the tenant's policy does not allow it (runtime, privilege).
    PolicyRefused,
    /// 403: the tenant's quota would be exceeded.
    QuotaExceeded,
    /// 404: it does not exist, or is another tenant's.
    NotFound,
    /// 409: a name in use, a state that does not allow it, an ambiguous short id.
    Conflict,
    /// 413: the body is larger than accepted.
    TooLarge,
    /// 429: the tenant submits too fast; `Retry-After` says when to try again.
    RateLimited,
    /// 429: the controller is at a limit of its own; `Retry-After` says when to try again.
    Busy,
    /// 502: the instance's node is not connected, or its stream broke.
    NodeUnreachable,
    /// 503: no scheduler is connected.
    SchedulerUnreachable,
    /// 507: the controller's disk is full; nothing was submitted.
    StorageFull,
    /// 500: a fault of the controller.
    Internal,
}

impl ErrorCode {
    /// The HTTP status that goes with it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Forbidden | Self::PolicyRefused | Self::QuotaExceeded => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::RateLimited | Self::Busy => 429,
            Self::NodeUnreachable => 502,
            Self::SchedulerUnreachable => 503,
            Self::StorageFull => 507,
            Self::Internal => 500,
        }
    }
}

/// The body of every refusal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub code: ErrorCode,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Facts for scripts; for `quota_exceeded` a [`QuotaRefusal`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub details: Option<serde_json::Value>,
}

/// The details of a `quota_exceeded`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuotaRefusal {
    pub tenant: String,
    /// `instances`, `cpu_millis`, `memory_mib`, `disk_mib` or `gpu_millis`.
    pub quota: String,
    pub limit: u64,
    pub used: u64,
    pub asked: u64,
}
