//! Tenants, quotas and workloads.

use super::spec::{RuntimeName, Spec};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// A tenant and its policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tenant {
    pub name: String,
    pub runtimes: Vec<RuntimeName>,
    /// Its workloads may ask for root, host users and devices.
    pub privileged: bool,
    /// Submitted instances a second, sustained; null: no limit.
    pub submit_rate_per_s: Option<u32>,
    pub quota: Quota,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// All tenants that the caller may see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantList {
    pub tenants: Vec<Tenant>,
}

/// A new tenant. What is absent is as configured for `default`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    pub name: String,
    #[serde(default)]
    pub runtimes: Option<Vec<RuntimeName>>,
    #[serde(default)]
    pub privileged: Option<bool>,
    /// Absent: the default; null: no limit.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u32>)]
    pub submit_rate_per_s: Option<Option<u32>>,
    #[serde(default)]
    pub quota: UpdateQuota,
}

/// Changes to a tenant; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateTenant {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtimes: Option<Vec<RuntimeName>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privileged: Option<bool>,
    /// null: no limit.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub submit_rate_per_s: Option<Option<u32>>,
}

/// A tenant's limits and what its living instances use of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quota {
    pub tenant: String,
    pub limits: QuotaLimits,
    pub used: QuotaUse,
}

/// All quotas that the caller may see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuotaList {
    pub quotas: Vec<Quota>,
}

/// Limits; null: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaLimits {
    pub instances: Option<u64>,
    pub cpu_millis: Option<u64>,
    pub memory_mib: Option<u64>,
    pub disk_mib: Option<u64>,
    pub gpu_millis: Option<u64>,
}

/// What is used of a quota: charged once an instance, from admission to its committed end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuotaUse {
    pub instances: u64,
    pub cpu_millis: u64,
    pub memory_mib: u64,
    pub disk_mib: u64,
    pub gpu_millis: u64,
}

/// Changes to a quota. What is absent stays; null takes the limit away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateQuota {
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub instances: Option<Option<u64>>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub cpu_millis: Option<Option<u64>>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub memory_mib: Option<Option<u64>>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub disk_mib: Option<Option<u64>>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub gpu_millis: Option<Option<u64>>,
}

/// Tells a field that is null from one that is absent.
fn present<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// A named template of instances, within a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Workload {
    pub name: String,
    pub tenant: String,
    pub spec: Spec,
    /// Rises with each replacement.
    pub revision: u64,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// Workloads, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkloadList {
    pub workloads: Vec<Workload>,
}

/// A new workload, or the replacement of one; instances that exist keep what they were made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWorkload {
    pub name: String,
    /// As in a submission.
    #[serde(default)]
    pub tenant: Option<String>,
    pub spec: Spec,
}
