//! The one table of routes: method, path, who may use it, and its handler. The router is made from
//! it, and the tests hold it against the OpenAPI document.

use super::{App, events, exec, files, instances, nodes, output, tenants};
use axum::Router;
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use std::sync::Arc;

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Users, who see their own tenant's things alone, and administrators.
    Members,
    /// Administrators.
    Admins,
    /// Administrators and daemons of the cluster.
    Operators,
    /// Whoever has a certificate of the cluster.
    Everybody,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub method: &'static str,
    pub path: &'static str,
    pub access: Access,
}

type Handlers = MethodRouter<Arc<App>>;

macro_rules! table {
    ($($method:ident $path:literal $access:ident $handler:path;)+) => {
        /// Every route.
        pub const ROUTES: &[Route] = &[$(Route {
            method: stringify!($method),
            path: $path,
            access: Access::$access,
        }),+];

        fn handlers() -> Vec<(&'static str, Handlers)> {
            vec![$(($path, $method($handler))),+]
        }
    };
}

table! {
    post "/v1/instances" Members instances::submit;
    get "/v1/instances" Members instances::list;
    get "/v1/instances/{id}" Members instances::show;
    delete "/v1/instances/{id}" Members instances::remove;
    post "/v1/instances/{id}/stop" Members instances::stop;
    post "/v1/instances/{id}/restart" Members instances::restart;
    get "/v1/instances/{id}/output" Members output::output;
    post "/v1/instances/{id}/stdin" Members files::stdin;
    post "/v1/instances/{id}/exec" Members exec::exec;
    get "/v1/instances/{id}/files" Members files::get_file;
    put "/v1/instances/{id}/files" Members files::put_file;
    get "/v1/instances/{id}/listing" Members files::listing;
    get "/v1/submissions/{request_id}" Members instances::submission;
    get "/v1/workloads" Members tenants::list_workloads;
    post "/v1/workloads" Members tenants::create_workload;
    get "/v1/workloads/{name}" Members tenants::show_workload;
    put "/v1/workloads/{name}" Members tenants::replace_workload;
    delete "/v1/workloads/{name}" Members tenants::delete_workload;
    get "/v1/tenants" Members tenants::list_tenants;
    post "/v1/tenants" Admins tenants::create_tenant;
    get "/v1/tenants/{tenant}" Members tenants::show_tenant;
    patch "/v1/tenants/{tenant}" Admins tenants::update_tenant;
    delete "/v1/tenants/{tenant}" Admins tenants::delete_tenant;
    get "/v1/quotas" Members tenants::list_quotas;
    get "/v1/quotas/{tenant}" Members tenants::show_quota;
    patch "/v1/quotas/{tenant}" Admins tenants::update_quota;
    get "/v1/nodes" Members nodes::list;
    get "/v1/nodes/{node}" Members nodes::show;
    post "/v1/nodes/{node}/drain" Admins nodes::drain;
    post "/v1/nodes/{node}/restore" Admins nodes::restore;
    delete "/v1/nodes/{node}" Admins nodes::remove;
    get "/v1/events" Members events::list;
    post "/v1/explain" Members nodes::explain;
    get "/v1/status" Members nodes::status;
    post "/v1/alarms/resume" Admins nodes::resume;
    get "/v1/openapi.json" Everybody nodes::openapi;
    get "/metrics" Operators nodes::metrics;
    get "/healthz" Everybody nodes::healthz;
    get "/readyz" Everybody nodes::readyz;
}

/// Who may use what matched; absent: no such method there.
pub(crate) fn access(method: &str, path: &str) -> Option<Access> {
    // HEAD is answered by GET's handler.
    let method = if method.eq_ignore_ascii_case("head") {
        "get"
    } else {
        method
    };
    ROUTES
        .iter()
        .find(|route| route.path == path && route.method.eq_ignore_ascii_case(method))
        .map(|route| route.access)
}

pub(crate) fn router(app: Arc<App>) -> Router {
    handlers()
        .into_iter()
        .fold(Router::new(), |router, (path, handlers)| {
            router.route(path, handlers)
        })
        .with_state(app)
}
