//! The OpenAPI document, generated from the handlers and their types.

use super::{events, exec, files, instances, nodes, output, tenants, types};
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Pronto",
        description = "Users and administrators are known by their client certificates. A user \
                       sees its own tenant's things only; others' are answered as if they did not \
                       exist. Every refusal has the body ErrorBody."
    ),
    paths(
        instances::submit,
        instances::list,
        instances::show,
        instances::remove,
        instances::stop,
        instances::restart,
        instances::submission,
        output::output,
        files::stdin,
        exec::exec,
        files::get_file,
        files::put_file,
        files::listing,
        tenants::list_workloads,
        tenants::create_workload,
        tenants::show_workload,
        tenants::replace_workload,
        tenants::delete_workload,
        tenants::list_tenants,
        tenants::create_tenant,
        tenants::show_tenant,
        tenants::update_tenant,
        tenants::delete_tenant,
        tenants::list_quotas,
        tenants::show_quota,
        tenants::update_quota,
        nodes::list,
        nodes::show,
        nodes::drain,
        nodes::restore,
        nodes::remove,
        nodes::explain,
        nodes::status,
        nodes::resume,
        nodes::openapi,
        nodes::metrics,
        nodes::healthz,
        nodes::readyz,
        events::list,
    ),
    components(schemas(types::QuotaRefusal, types::EventRecord))
)]
struct Document;

/// The document.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    env!("CARGO_PKG_VERSION").clone_into(&mut document.info.version);
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::routes::ROUTES;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_is_in_the_document_and_nothing_else_is() {
        let json = serde_json::to_value(document()).unwrap();
        let mut documented = BTreeSet::new();
        for (path, methods) in json["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                documented.insert(format!("{method} {path}"));
            }
        }
        let routed: BTreeSet<String> = ROUTES
            .iter()
            .map(|route| format!("{} {}", route.method, route.path))
            .collect();
        assert_eq!(documented, routed);
    }

    #[test]
    fn every_schema_that_is_referred_to_is_there() {
        let text = serde_json::to_string(&document()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let known = json["components"]["schemas"].as_object().unwrap();
        for part in text.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(known.contains_key(name), "{name} is not in the document");
        }
    }
}
