//! Tenants, quotas and workloads: what administrators set, and users' templates.

use super::event::{Actor, Call, Refused, Reply, Token};
use super::state::{DEFAULT_TENANT, State};
use crate::api::types::{
    CreateTenant, CreateWorkload, ErrorCode, QuotaLimits, UpdateQuota, UpdateTenant, Workload,
};
use crate::policy::RateLimit;
use crate::spec;
use crate::store::{TenantRow, WorkloadRow, Write, timestamp};
use pronto_payloads::codec::{check_name, encode};
use std::sync::Arc;

/// Workloads of one tenant: bounds what a user can make the controller keep in memory.
const MAX_WORKLOADS: usize = 10_000;
/// Tenants: each costs a line in every quota listing.
const MAX_TENANTS: usize = 100_000;

type Answer = Result<Option<Reply>, Refused>;

impl State {
    pub(crate) fn on_tenant_request(&mut self, token: Token, actor: &Actor, call: Call) -> Answer {
        match call {
            Call::Tenants => {
                let shown = (0..u32::try_from(self.tenants.len()).unwrap_or(u32::MAX))
                    .filter(|&index| self.may_see(actor, index))
                    .map(|index| self.tenant_view(index))
                    .collect();
                Ok(Some(Reply::Tenants(shown)))
            }
            Call::Tenant(name) => {
                let index = self.tenant_of(actor, Some(&name))?;
                Ok(Some(Reply::Tenant(Box::new(self.tenant_view(index)))))
            }
            Call::CreateTenant(create) => self.create_tenant(token, actor, create),
            Call::UpdateTenant(name, update) => self.update_tenant(token, actor, &name, update),
            Call::DeleteTenant(name) => self.delete_tenant(token, actor, &name),
            Call::UpdateQuota(name, update) => self.update_quota(token, actor, &name, update),
            Call::Workloads(tenant) => {
                let tenant = match (actor.scope(), tenant.as_deref()) {
                    (None, None) => None,
                    (_, tenant) => {
                        let index = self.tenant_of(actor, tenant)?;
                        Some(Arc::clone(&self.tenants[index as usize].name))
                    }
                };
                let shown = self
                    .workloads
                    .values()
                    .filter(|row| tenant.as_ref().is_none_or(|tenant| *tenant == row.tenant))
                    .map(workload_view)
                    .collect();
                Ok(Some(Reply::Workloads(shown)))
            }
            Call::Workload { tenant, name } => {
                let key = self.workload_key(actor, tenant.as_deref(), &name)?;
                let row = self
                    .workloads
                    .get(&key)
                    .ok_or_else(|| Refused::not_found("workload", &name))?;
                Ok(Some(Reply::Workload(Box::new(workload_view(row)))))
            }
            Call::PutWorkload { workload, replace } => {
                self.put_workload(token, actor, *workload, replace)
            }
            Call::DeleteWorkload { tenant, name } => {
                let key = self.workload_key(actor, tenant.as_deref(), &name)?;
                if !self.drop_workload(&key) {
                    return Err(Refused::not_found("workload", &name));
                }
                let (tenant, name) = key;
                let text = format!("workload {name}");
                self.audit(actor, "workload_deleted", Some(Arc::clone(&tenant)), text);
                self.journal.write(Write::WorkloadDeleted { tenant, name });
                self.reply_durably(token, Reply::Done);
                Ok(None)
            }
            // Everything else was answered before it came here.
            other => unreachable!("not about tenants: {other:?}"),
        }
    }

    fn may_see(&self, actor: &Actor, index: u32) -> bool {
        let entry = &self.tenants[index as usize];
        !entry.deleted && actor.scope().is_none_or(|own| *own == entry.name)
    }

    fn admin(actor: &Actor, what: &str) -> Result<(), Refused> {
        if actor.scope().is_none() {
            return Ok(());
        }
        Err(Refused::new(
            ErrorCode::Forbidden,
            format!("only an administrator may {what}"),
        ))
    }

    fn create_tenant(&mut self, token: Token, actor: &Actor, create: CreateTenant) -> Answer {
        Self::admin(actor, "create a tenant")?;
        check_name("tenant", &create.name).map_err(|error| super::submit::invalid(&error))?;
        if create.name.contains('/') {
            return Err(Refused::new(
                ErrorCode::InvalidRequest,
                "a tenant's name holds no '/'",
            ));
        }
        let known = self.tenant_index.get(create.name.as_str()).copied();
        if known.is_some_and(|index| !self.tenants[index as usize].deleted) {
            return Err(Refused::new(
                ErrorCode::Conflict,
                format!("tenant {} exists already", create.name),
            ));
        }
        if self.tenants.len() >= MAX_TENANTS {
            return Err(Refused::new(ErrorCode::Busy, "too many tenants"));
        }
        let words = as_asked(&create);
        let mut row = self.new_tenant_row(&create.name);
        if let Some(runtimes) = create.runtimes {
            row.runtimes = runtimes;
        }
        row.privileged = create.privileged.unwrap_or(row.privileged);
        row.submit_rate_per_s = create.submit_rate_per_s.unwrap_or(row.submit_rate_per_s);
        row.limits = changed(row.limits, create.quota);
        let index = if let Some(index) = known {
            self.apply_tenant(index, &row);
            self.tenants[index as usize].deleted = false;
            index
        } else {
            self.put_tenant(row.clone())
        };
        let name = Arc::clone(&row.name);
        self.audit(actor, "tenant_created", Some(name), words);
        self.journal.write(Write::Tenant(row));
        self.reply_durably(token, Reply::Tenant(Box::new(self.tenant_view(index))));
        Ok(None)
    }

    fn apply_tenant(&mut self, index: u32, row: &TenantRow) {
        let now_ns = self.now.mono_ns;
        let entry = &mut self.tenants[index as usize];
        entry.policy.runtimes.clone_from(&row.runtimes);
        entry.policy.privileged = row.privileged;
        entry.policy.limits = row.limits;
        if entry.submit_rate_per_s != row.submit_rate_per_s {
            entry.submit_rate_per_s = row.submit_rate_per_s;
            entry.rate = RateLimit::new(row.submit_rate_per_s, now_ns);
        }
    }

    fn tenant_row(&self, index: u32) -> TenantRow {
        let entry = &self.tenants[index as usize];
        TenantRow {
            name: Arc::clone(&entry.name),
            runtimes: entry.policy.runtimes.clone(),
            privileged: entry.policy.privileged,
            submit_rate_per_s: entry.submit_rate_per_s,
            limits: entry.policy.limits,
            created_unix_ms: entry.created_unix_ms,
        }
    }

    fn update_tenant(
        &mut self,
        token: Token,
        actor: &Actor,
        name: &str,
        update: UpdateTenant,
    ) -> Answer {
        Self::admin(actor, "change a tenant")?;
        let index = self.tenant_of(actor, Some(name))?;
        let mut row = self.tenant_row(index);
        let words = as_asked(&update);
        if let Some(runtimes) = update.runtimes {
            row.runtimes = runtimes;
        }
        row.privileged = update.privileged.unwrap_or(row.privileged);
        row.submit_rate_per_s = update.submit_rate_per_s.unwrap_or(row.submit_rate_per_s);
        self.apply_tenant(index, &row);
        self.audit(actor, "tenant_updated", Some(Arc::clone(&row.name)), words);
        self.journal.write(Write::Tenant(row));
        self.reply_durably(token, Reply::Tenant(Box::new(self.tenant_view(index))));
        Ok(None)
    }

    fn update_quota(
        &mut self,
        token: Token,
        actor: &Actor,
        name: &str,
        update: UpdateQuota,
    ) -> Answer {
        Self::admin(actor, "change a quota")?;
        let index = self.tenant_of(actor, Some(name))?;
        let mut row = self.tenant_row(index);
        row.limits = changed(row.limits, update);
        self.apply_tenant(index, &row);
        let tenant = Some(Arc::clone(&row.name));
        self.audit(actor, "quota_updated", tenant, as_asked(&update));
        self.journal.write(Write::Tenant(row));
        self.reply_durably(token, Reply::Quota(self.quota_view(index)));
        Ok(None)
    }

    fn delete_tenant(&mut self, token: Token, actor: &Actor, name: &str) -> Answer {
        Self::admin(actor, "delete a tenant")?;
        let index = self.tenant_of(actor, Some(name))?;
        if name == DEFAULT_TENANT {
            return Err(Refused::new(
                ErrorCode::Conflict,
                "the tenant default can't be deleted",
            ));
        }
        let used = self.tenants[index as usize].used.instances;
        if used > 0 {
            return Err(Refused::new(
                ErrorCode::Conflict,
                format!("{used} instances of tenant {name} live"),
            )
            .hint("stop them first"));
        }
        self.tenants[index as usize].deleted = true;
        let tenant = Arc::clone(&self.tenants[index as usize].name);
        let gone: Vec<_> = self
            .workloads
            .keys()
            .filter(|(owner, _)| *owner == tenant)
            .cloned()
            .collect();
        for (owner, name) in gone {
            self.drop_workload(&(Arc::clone(&owner), Arc::clone(&name)));
            self.journal.write(Write::WorkloadDeleted {
                tenant: owner,
                name,
            });
        }
        let audited = Some(Arc::clone(&tenant));
        self.audit(actor, "tenant_deleted", audited, String::new());
        self.journal.write(Write::TenantDeleted(tenant));
        self.reply_durably(token, Reply::Done);
        Ok(None)
    }

    fn workload_key(
        &self,
        actor: &Actor,
        tenant: Option<&str>,
        name: &str,
    ) -> Result<(Arc<str>, Arc<str>), Refused> {
        let index = self.tenant_of(actor, tenant)?;
        Ok((
            Arc::clone(&self.tenants[index as usize].name),
            Arc::from(name),
        ))
    }

    pub(crate) fn keep_workload(&mut self, row: WorkloadRow) {
        if let Some(&tenant) = self.tenant_index.get(&row.tenant) {
            self.tenants[tenant as usize].workload_bytes += bytes(&row);
        }
        let key = (Arc::clone(&row.tenant), Arc::clone(&row.name));
        self.workloads.insert(key, row);
    }

    fn drop_workload(&mut self, key: &(Arc<str>, Arc<str>)) -> bool {
        let Some(row) = self.workloads.remove(key) else {
            return false;
        };
        if let Some(&tenant) = self.tenant_index.get(&row.tenant) {
            let held = &mut self.tenants[tenant as usize].workload_bytes;
            *held = held.saturating_sub(bytes(&row));
        }
        true
    }

    fn put_workload(
        &mut self,
        token: Token,
        actor: &Actor,
        workload: CreateWorkload,
        replace: bool,
    ) -> Answer {
        let key = self.workload_key(actor, workload.tenant.as_deref(), &workload.name)?;
        check_name("workload", &workload.name)
            .and_then(|()| spec::check(&workload.spec))
            .map_err(|error| super::submit::invalid(&error))?;
        if workload.name.contains('/') {
            return Err(Refused::new(
                ErrorCode::InvalidRequest,
                "a workload's name holds no '/'",
            ));
        }
        let known = self.workloads.get(&key);
        match (known, replace) {
            (Some(_), false) => {
                return Err(Refused::new(
                    ErrorCode::Conflict,
                    format!("workload {} exists already", workload.name),
                )
                .hint("PUT replaces it"));
            }
            (None, true) => return Err(Refused::not_found("workload", &workload.name)),
            _ => {}
        }
        let owned = self.workloads.keys().filter(|(tenant, _)| *tenant == key.0);
        if known.is_none() && owned.count() >= MAX_WORKLOADS {
            return Err(Refused::new(
                ErrorCode::Conflict,
                format!("a tenant has at most {MAX_WORKLOADS} workloads"),
            ));
        }
        let replaced = known.map_or(0, bytes);
        let row = WorkloadRow {
            tenant: Arc::clone(&key.0),
            name: Arc::clone(&key.1),
            spec: Arc::new(workload.spec),
            revision: known.map_or(1, |row| row.revision + 1),
            created_unix_ms: known.map_or(self.now.unix_ms, |row| row.created_unix_ms),
            updated_unix_ms: self.now.unix_ms,
        };
        let index = self.tenant_index[&key.0];
        let held = self.tenants[index as usize].workload_bytes - replaced;
        if held + bytes(&row) > self.settings.max_workload_bytes {
            return Err(Refused::new(
                ErrorCode::Conflict,
                format!(
                    "the workloads of a tenant have {} MiB at most",
                    self.settings.max_workload_bytes >> 20
                ),
            ));
        }
        let view = workload_view(&row);
        let kind = if replace {
            "workload_replaced"
        } else {
            "workload_created"
        };
        let text = format!("workload {}, revision {}", row.name, row.revision);
        self.audit(actor, kind, Some(Arc::clone(&row.tenant)), text);
        self.journal.write(Write::Workload(row.clone()));
        self.drop_workload(&key);
        self.keep_workload(row);
        self.reply_durably(token, Reply::Workload(Box::new(view)));
        Ok(None)
    }
}

/// What a workload takes in memory, about.
fn bytes(row: &WorkloadRow) -> u64 {
    let spec = spec::start_body(&row.tenant, Some(&row.name), "", &row.spec);
    2 * encode(&spec).len() as u64
}

/// The API layer hides the environment unless its owner asks for it.
fn workload_view(row: &WorkloadRow) -> Workload {
    Workload {
        name: row.name.to_string(),
        tenant: row.tenant.to_string(),
        spec: (*row.spec).clone(),
        revision: row.revision,
        created_at: timestamp(row.created_unix_ms),
        updated_at: timestamp(row.updated_unix_ms),
    }
}

fn changed(limits: QuotaLimits, update: UpdateQuota) -> QuotaLimits {
    QuotaLimits {
        instances: update.instances.unwrap_or(limits.instances),
        cpu_millis: update.cpu_millis.unwrap_or(limits.cpu_millis),
        memory_mib: update.memory_mib.unwrap_or(limits.memory_mib),
        disk_mib: update.disk_mib.unwrap_or(limits.disk_mib),
        gpu_millis: update.gpu_millis.unwrap_or(limits.gpu_millis),
    }
}

/// A change in the words of the API, for the audit trail.
fn as_asked(change: &impl serde::Serialize) -> String {
    serde_json::to_string(change).expect("a request that was read as JSON can be written as such")
}
