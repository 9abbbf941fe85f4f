//! Policy and durable state: tenants, quotas, workloads, instances.

pub mod api;
