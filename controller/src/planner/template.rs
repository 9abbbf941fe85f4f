//! What the instances of a submission have in common, prepared once: the START's body is encoded
//! when the first is admitted, and shared by all.

use super::queue::ClassKey;
use crate::api::types::{OnDisconnectSpec, QuotaUse, Spec};
use crate::policy::Ask;
use crate::spec;
use crate::store::SpecRow;
use bytes::Bytes;
use pronto_payloads::codec;
use std::sync::Arc;

/// A spec, ready to be sent.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) id: u32,
    pub(crate) tenant: Arc<str>,
    pub(crate) workload: Option<Arc<str>>,
    pub(crate) spec: Arc<Spec>,
    pub(crate) class: Arc<ClassKey>,
    pub(crate) each: QuotaUse,
    /// Of an instance without a name.
    body: Bytes,
}

impl Template {
    pub(crate) fn new(row: &SpecRow) -> Self {
        let demand = spec::demand(&row.spec.demand);
        let body = spec::start_body(&row.tenant, row.workload.as_deref(), "", &row.spec);
        Self {
            id: row.id,
            tenant: Arc::clone(&row.tenant),
            workload: row.workload.clone(),
            spec: Arc::clone(&row.spec),
            each: spec::quota_use(&demand),
            class: Arc::new(ClassKey {
                demand,
                constraints: spec::constraints(&row.spec.constraints),
                runtime: row.spec.task.runtime().wire(),
            }),
            body: codec::encode(&body),
        }
    }

    pub(crate) fn row(&self) -> SpecRow {
        SpecRow {
            id: self.id,
            tenant: Arc::clone(&self.tenant),
            workload: self.workload.clone(),
            spec: Arc::clone(&self.spec),
        }
    }

    /// What it takes in memory, about.
    pub(crate) fn bytes(&self) -> u64 {
        2 * self.body.len() as u64
    }

    pub(crate) fn body(&self, name: Option<&str>) -> Bytes {
        match name {
            None => self.body.clone(),
            Some(name) => codec::encode(&spec::start_body(
                &self.tenant,
                self.workload.as_deref(),
                name,
                &self.spec,
            )),
        }
    }

    pub(crate) fn ask(&self, count: u32) -> Ask {
        Ask {
            runtime: self.spec.task.runtime(),
            privileged: self.spec.privileged,
            count,
            each: self.each,
        }
    }

    /// `stop-after`: for work that must never run twice at once.
    pub(crate) fn stop_after_ms(&self) -> Option<u64> {
        match self.spec.on_disconnect {
            OnDisconnectSpec::Keep => None,
            OnDisconnectSpec::StopAfterMs(ms) => Some(ms),
        }
    }

    /// Whether it matters, also to the next process, that an attempt came to a node, be that node lost:
    /// no successor may run, or none may wait.
    pub(crate) fn runs_are_counted(&self) -> bool {
        let spec = &self.spec;
        spec.reschedule.limit == 0 || spec.stdin || spec.pending_timeout_ms.is_some()
    }

    pub(crate) fn priority(&self) -> i16 {
        self.spec.priority
    }
}
