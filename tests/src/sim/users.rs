//! What users and administrators do while things break: submit, stop, delete, drain, exceed quotas.

use super::equipment::{self, Equipment};
use super::oracle::Quota;
use super::rng::Rng;
use pronto_controller::api::types::{
    CreateTenant, DemandSpec, ErrorCode, ExecSpec, OnDisconnectSpec, RestartMode, RestartPolicy,
    RuntimeName, SimSpec, Spec, SpecOverrides, TaskSpec, UpdateQuota,
};
use pronto_controller::planner::{
    Actor, ActorKind, Call, DrainCall, LiveFilter, Refused, Reply, SubmitCall,
};
use pronto_controller::store::AfterStop;
use pronto_payloads::ids::InstanceId;
use uuid::Uuid;

/// A tenant with a small quota, which its users exceed.
pub const SMALL_TENANT: &str = "small";
/// The tenant that is always there.
pub const DEFAULT_TENANT: &str = "default";
/// Its quota.
pub const SMALL_QUOTA: Quota = Quota {
    instances: 6,
    gpu_millis: 2_500,
};

/// Longer than any fence takes.
const LONG_MS: u64 = 15_000;

/// An administrator.
#[must_use]
pub fn admin() -> Actor {
    Actor {
        kind: ActorKind::Admin,
        name: "root".to_owned(),
        source: "sim".to_owned(),
    }
}

/// Somebody of a tenant.
#[must_use]
pub fn user(tenant: &str) -> Actor {
    Actor {
        kind: ActorKind::User(tenant.into()),
        name: "somebody".to_owned(),
        source: "sim".to_owned(),
    }
}

/// The tenant that this one is not.
#[must_use]
pub fn other_tenant(tenant: &str) -> &'static str {
    if tenant == SMALL_TENANT {
        DEFAULT_TENANT
    } else {
        SMALL_TENANT
    }
}

/// What somebody must be told who has no business there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuff {
    /// No such instance lives, as for an id that nobody has.
    NotLiving,
    /// There is nothing of this name.
    NotFound,
    /// Only an administrator may.
    Forbidden,
    /// Nothing but what is his own.
    OnlyOwn,
}

impl Rebuff {
    /// Whether this answer is one that tells nothing, to somebody of this tenant.
    #[must_use]
    pub fn is(self, reply: &Result<Reply, Refused>, tenant: &str) -> bool {
        match (self, reply) {
            (Self::NotLiving, Ok(Reply::NotLiving | Reply::Ended { .. })) => true,
            (Self::OnlyOwn, Ok(Reply::Listed(list))) => {
                list.iter().all(|(_, instance)| instance.tenant == tenant)
            }
            (Self::OnlyOwn, Ok(Reply::Resolved(found))) => found.living.is_empty(),
            (Self::OnlyOwn, Ok(Reply::Tenants(list))) => {
                list.iter().all(|shown| shown.name == tenant)
            }
            // His own tenant may not be there yet.
            (Self::NotFound | Self::OnlyOwn, Err(refused)) => {
                refused.body.code == ErrorCode::NotFound
            }
            (Self::Forbidden, Err(refused)) => refused.body.code == ErrorCode::Forbidden,
            _ => false,
        }
    }
}

/// What somebody of another tenant tries with an instance, or with its tenant.
pub fn intrude(rng: &mut Rng, id: InstanceId, tenant: &str) -> (Call, Rebuff) {
    let named = || Some(tenant.to_owned());
    match rng.below(14) {
        0..4 => {
            let then = *rng.choose(&[AfterStop::Keep, AfterStop::Delete, AfterStop::Restart]);
            let grace_ms = Some(0);
            (Call::Stop { id, grace_ms, then }, Rebuff::NotLiving)
        }
        4 => (Call::Show(id), Rebuff::NotLiving),
        5 => {
            let filter = LiveFilter {
                limit: 1000,
                ..LiveFilter::default()
            };
            (Call::List(filter), Rebuff::OnlyOwn)
        }
        6 => {
            let filter = LiveFilter {
                tenant: named(),
                limit: 1000,
                ..LiveFilter::default()
            };
            (Call::List(filter), Rebuff::NotFound)
        }
        7 => {
            let text = id.to_string();
            (Call::Resolve { text, tenant: None }, Rebuff::OnlyOwn)
        }
        8 => {
            let explain = Call::Explain {
                runtime: RuntimeName::Exec,
                demand: DemandSpec::default(),
                constraints: Vec::new(),
                tenant: None,
                instance: Some(id),
            };
            (explain, Rebuff::NotLiving)
        }
        9 => (
            Call::Submit(Box::new(equal(99, 1, 100, 10))),
            Rebuff::NotFound,
        ),
        10 => (Call::Tenants, Rebuff::OnlyOwn),
        11 => (Call::Tenant(tenant.to_owned()), Rebuff::NotFound),
        12 => {
            let update = UpdateQuota {
                instances: Some(None),
                ..UpdateQuota::default()
            };
            (
                Call::UpdateQuota(tenant.to_owned(), update),
                Rebuff::Forbidden,
            )
        }
        _ => (drain(rng, "node-0".to_owned()), Rebuff::Forbidden),
    }
}

/// Makes the tenant with the small quota.
#[must_use]
pub fn create_small_tenant() -> Call {
    Call::CreateTenant(CreateTenant {
        name: SMALL_TENANT.to_owned(),
        runtimes: None,
        privileged: None,
        submit_rate_per_s: None,
        quota: UpdateQuota {
            instances: Some(Some(SMALL_QUOTA.instances)),
            gpu_millis: Some(Some(SMALL_QUOTA.gpu_millis)),
            ..UpdateQuota::default()
        },
    })
}

/// A submission of equal instances, each of which runs for so long on so much of a CPU.
#[must_use]
pub fn equal(request: u8, count: u32, cpu_millis: u32, run_ms: u64) -> SubmitCall {
    let mut spec = Spec::new(TaskSpec::Exec(ExecSpec {
        command: ["work".to_owned(), run_ms.to_string(), "0".to_owned()].to_vec(),
        ..ExecSpec::default()
    }));
    spec.demand = DemandSpec {
        cpu_millis,
        memory_mib: 16,
        ..DemandSpec::default()
    };
    SubmitCall {
        tenant: Some("default".to_owned()),
        request: Uuid::from_bytes([request; 16]),
        digest: u64::from(request),
        name: None,
        count,
        workload: None,
        spec: Some(spec),
        overrides: SpecOverrides::default(),
        received_ns: 0,
        nonce: u64::from(request),
    }
}

/// A submission of some instances with random needs, to a cluster that has these nodes if they are
/// equipped.
pub fn submit(rng: &mut Rng, now_ns: i64, equipped: Option<&[Equipment]>) -> SubmitCall {
    // Half of a small cluster's capacity on average, and all of it in bursts.
    let run_ms = match rng.below(40) {
        0..18 => rng.between(0, 20),
        18..36 => rng.between(50, 1500),
        36..38 => rng.between(2_000, 8_000),
        _ => rng.between(LONG_MS, 2 * LONG_MS),
    };
    // What runs for long is not tried again, or a full cluster would never settle.
    let exit_code = i32::from(rng.per_mille(100) && run_ms < LONG_MS);
    // Most work has a shim and outlives its launcher; some is the launcher's own.
    let task = if rng.per_mille(800) {
        TaskSpec::Exec(ExecSpec {
            command: ["work".to_owned(), run_ms.to_string(), exit_code.to_string()].to_vec(),
            ..ExecSpec::default()
        })
    } else {
        TaskSpec::Sim(SimSpec { run_ms, exit_code })
    };
    let mut spec = Spec::new(task);
    spec.demand = DemandSpec {
        cpu_millis: u32::try_from(rng.between(1, 20) * 100).expect("small"),
        memory_mib: u32::try_from(rng.between(1, 16) * 64).expect("small"),
        ..DemandSpec::default()
    };
    spec.stop_grace_ms = rng.between(1, 500);
    spec.priority = i16::try_from(rng.below(3)).expect("small");
    // What runs longer than any fence takes shows whether the fence holds.
    if rng.per_mille(if run_ms >= LONG_MS { 800 } else { 400 }) {
        spec.on_disconnect = OnDisconnectSpec::StopAfterMs(rng.between(100, 3000));
    }
    if rng.per_mille(300) {
        spec.restart = RestartPolicy {
            mode: RestartMode::OnFailure,
            limit: Some(2),
            backoff_ms: 100,
            backoff_max_ms: 1000,
        };
    }
    if rng.per_mille(100) {
        spec.timeout_ms = Some(rng.between(10, 2000));
    }
    if rng.per_mille(100) {
        spec.pending_timeout_ms = Some(rng.between(100, 5000));
    }
    if let Some(nodes) = equipped {
        equipment::ask_for_more(rng, &mut spec, nodes, run_ms >= LONG_MS);
    }
    let tenant = if rng.per_mille(200) {
        SMALL_TENANT
    } else {
        "default"
    };
    SubmitCall {
        tenant: Some(tenant.to_owned()),
        request: Uuid::from_bytes(rng.bytes()),
        digest: rng.next(),
        name: None,
        count: u32::try_from(rng.between(1, 5)).expect("small"),
        workload: None,
        spec: Some(spec),
        overrides: SpecOverrides::default(),
        received_ns: now_ns,
        nonce: rng.next(),
    }
}

/// A stop of one of these, or nothing.
pub fn stop(rng: &mut Rng, known: &[InstanceId]) -> Option<(InstanceId, Call)> {
    if known.is_empty() {
        return None;
    }
    let id = *rng.choose(known);
    let then = if rng.per_mille(150) {
        AfterStop::Delete
    } else {
        AfterStop::Keep
    };
    Some((
        id,
        Call::Stop {
            id,
            grace_ms: None,
            then,
        },
    ))
}

/// A drain with a deadline.
pub fn drain(rng: &mut Rng, node: String) -> Call {
    Call::Drain(DrainCall {
        node,
        deadline_ms: rng.between(100, 4000),
    })
}
