//! Tenants, quotas and workloads.

use super::instances::reveals;
use super::reply::{Caller, Json, Path, Query, invalid, json, nothing, ok};
use super::types::{
    CreateTenant, CreateWorkload, ErrorBody, OneQuery, Quota, QuotaList, Tenant, TenantList,
    UpdateQuota, UpdateTenant, Workload, WorkloadList,
};
use super::{App, internal};
use crate::planner::{Actor, Call, Refused, Reply};
use crate::spec::redacted;
use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use std::sync::Arc;

async fn tenants(app: &App, actor: &Actor) -> Result<Vec<Tenant>, Refused> {
    let _place = app.place_for_list(actor)?;
    match app.ask(actor, Call::Tenants).await? {
        Reply::Tenants(tenants) => Ok(tenants),
        _ => Err(internal()),
    }
}

async fn tenant(app: &App, actor: &Actor, call: Call) -> Result<Tenant, Refused> {
    match app.ask(actor, call).await? {
        Reply::Tenant(tenant) => Ok(*tenant),
        _ => Err(internal()),
    }
}

/// Lists the tenants that the caller may see.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants",
    responses((status = 200, body = TenantList), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn list_tenants(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
) -> Result<Response, Refused> {
    let tenants = tenants(&app, &actor).await?;
    Ok(ok(&TenantList { tenants }))
}

/// Creates a tenant.
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = CreateTenant,
    responses((status = 201, body = Tenant), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn create_tenant(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Json(request): Json<CreateTenant>,
) -> Result<Response, Refused> {
    let created = tenant(&app, &actor, Call::CreateTenant(request)).await?;
    Ok(json(StatusCode::CREATED, &created))
}

/// Shows a tenant.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "tenants",
    params(("tenant" = String, Path)),
    responses((status = 200, body = Tenant), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn show_tenant(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    Ok(ok(&tenant(&app, &actor, Call::Tenant(name)).await?))
}

/// Changes a tenant's policy.
#[utoipa::path(patch, path = "/v1/tenants/{tenant}", tag = "tenants",
    params(("tenant" = String, Path)), request_body = UpdateTenant,
    responses((status = 200, body = Tenant), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn update_tenant(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    Json(request): Json<UpdateTenant>,
) -> Result<Response, Refused> {
    let call = Call::UpdateTenant(name, request);
    Ok(ok(&tenant(&app, &actor, call).await?))
}

/// Deletes a tenant without living instances. What is on record of those that have ended stays under
/// its name until retention removes it.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}", tag = "tenants",
    params(("tenant" = String, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn delete_tenant(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    app.ask(&actor, Call::DeleteTenant(name)).await?;
    Ok(nothing())
}

/// Lists quotas and what is used of them.
#[utoipa::path(get, path = "/v1/quotas", tag = "tenants",
    responses((status = 200, body = QuotaList), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn list_quotas(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
) -> Result<Response, Refused> {
    let tenants = tenants(&app, &actor).await?;
    let quotas = tenants.into_iter().map(|tenant| tenant.quota).collect();
    Ok(ok(&QuotaList { quotas }))
}

/// Shows a tenant's quota and what is used of it.
#[utoipa::path(get, path = "/v1/quotas/{tenant}", tag = "tenants",
    params(("tenant" = String, Path)),
    responses((status = 200, body = Quota), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn show_quota(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    Ok(ok(&tenant(&app, &actor, Call::Tenant(name)).await?.quota))
}

/// Changes a tenant's quota.
#[utoipa::path(patch, path = "/v1/quotas/{tenant}", tag = "tenants",
    params(("tenant" = String, Path)), request_body = UpdateQuota,
    responses((status = 200, body = Quota), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn update_quota(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    Json(request): Json<UpdateQuota>,
) -> Result<Response, Refused> {
    match app.ask(&actor, Call::UpdateQuota(name, request)).await? {
        Reply::Quota(quota) => Ok(ok(&quota)),
        _ => Err(internal()),
    }
}

/// Hides the environment unless its owner asks for it.
fn shown(actor: &Actor, query: &OneQuery, mut workload: Workload) -> Result<Workload, Refused> {
    if !reveals(actor, query.reveal.as_deref(), &workload.tenant)? {
        workload.spec = redacted(&workload.spec);
    }
    Ok(workload)
}

/// Lists workloads.
#[utoipa::path(get, path = "/v1/workloads", tag = "workloads", params(OneQuery),
    responses((status = 200, body = WorkloadList), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn list_workloads(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Query(query): Query<OneQuery>,
) -> Result<Response, Refused> {
    let _place = app.place_for_list(&actor)?;
    match app
        .ask(&actor, Call::Workloads(query.tenant.clone()))
        .await?
    {
        Reply::Workloads(workloads) => {
            let workloads = workloads
                .into_iter()
                .map(|workload| shown(&actor, &query, workload))
                .collect::<Result<_, _>>()?;
            Ok(ok(&WorkloadList { workloads }))
        }
        _ => Err(internal()),
    }
}

async fn put(
    app: &App,
    actor: &Actor,
    workload: CreateWorkload,
    replace: bool,
) -> Result<Workload, Refused> {
    match app
        .ask(
            actor,
            Call::PutWorkload {
                workload: Box::new(workload),
                replace,
            },
        )
        .await?
    {
        Reply::Workload(workload) => shown(actor, &OneQuery::default(), *workload),
        _ => Err(internal()),
    }
}

/// Creates a workload.
#[utoipa::path(post, path = "/v1/workloads", tag = "workloads", request_body = CreateWorkload,
    responses((status = 201, body = Workload), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn create_workload(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Json(request): Json<CreateWorkload>,
) -> Result<Response, Refused> {
    let created = put(&app, &actor, request, false).await?;
    Ok(json(StatusCode::CREATED, &created))
}

/// Replaces a workload.
#[utoipa::path(put, path = "/v1/workloads/{name}", tag = "workloads",
    params(("name" = String, Path)), request_body = CreateWorkload,
    responses((status = 200, body = Workload), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn replace_workload(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    Json(request): Json<CreateWorkload>,
) -> Result<Response, Refused> {
    if request.name != name {
        return Err(invalid(format!(
            "the body's name is {}, the path's {name}",
            request.name
        )));
    }
    Ok(ok(&put(&app, &actor, request, true).await?))
}

/// Shows a workload.
#[utoipa::path(get, path = "/v1/workloads/{name}", tag = "workloads",
    params(("name" = String, Path), OneQuery),
    responses((status = 200, body = Workload), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn show_workload(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    Query(query): Query<OneQuery>,
) -> Result<Response, Refused> {
    let call = Call::Workload {
        tenant: query.tenant.clone(),
        name,
    };
    match app.ask(&actor, call).await? {
        Reply::Workload(workload) => Ok(ok(&shown(&actor, &query, *workload)?)),
        _ => Err(internal()),
    }
}

/// Deletes a workload; its instances stay.
#[utoipa::path(delete, path = "/v1/workloads/{name}", tag = "workloads",
    params(("name" = String, Path), OneQuery),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn delete_workload(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    Query(query): Query<OneQuery>,
) -> Result<Response, Refused> {
    let call = Call::DeleteWorkload {
        tenant: query.tenant,
        name,
    };
    app.ask(&actor, call).await?;
    Ok(nothing())
}
