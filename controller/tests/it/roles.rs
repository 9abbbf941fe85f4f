//! Every route of the OpenAPI document, tried as every role and as a stranger to the cluster.

use crate::api::Cluster;
use crate::certs::Ca;
use crate::client::Client;
use pronto_controller::api::openapi;
use pronto_controller::api::routes::{Access, ROUTES};
use pronto_controller::api::types::{ErrorBody, ErrorCode};

const ROLES: [(&str, &str); 5] = [
    ("user", "spiffe://lab/user/physics/ada"),
    ("admin", "spiffe://lab/admin/root"),
    ("launcher", "spiffe://lab/launcher/n1"),
    ("scheduler", "spiffe://lab/scheduler/s1"),
    ("controller", "spiffe://lab/controller/c2"),
];

fn allowed(access: Access, role: &str) -> bool {
    match access {
        Access::Everybody => true,
        Access::Members => role == "user" || role == "admin",
        Access::Admins => role == "admin",
        Access::Operators => role != "user",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_is_open_to_its_roles_alone() {
    let cluster = Cluster::start().await;
    let document = serde_json::to_value(openapi::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let mut tried = 0;
    for (role, uri) in ROLES {
        let credentials = cluster.ca.credentials(uri);
        for (path, methods) in paths {
            for method in methods.as_object().unwrap().keys() {
                let route = ROUTES
                    .iter()
                    .find(|route| route.path == path && route.method == method)
                    .unwrap();
                let concrete = path
                    .replace("{request_id}", "0192b3c4-0000-7000-8000-000000000000")
                    .replace("{id}", "0192b3c4-0000-7000-8000-000000000000")
                    .replace(['{', '}'], "");
                let mut client = cluster.controller.client(credentials.clone()).await;
                let response = client.raw(&method.to_uppercase(), &concrete, "{}").await;
                tried += 1;
                let forbidden = response.status == 403
                    && response.json::<ErrorBody>().code == ErrorCode::Forbidden;
                assert_eq!(
                    forbidden,
                    !allowed(route.access, role),
                    "{role} {method} {path}: {} {}",
                    response.status,
                    String::from_utf8_lossy(&response.body)
                );
                assert_ne!(response.status, 500, "{role} {method} {path}");
            }
        }
    }
    assert_eq!(tried, ROLES.len() * ROUTES.len());
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_not_let_in() {
    let cluster = Cluster::start().await;
    // Another cluster's CA, and another cluster's name under ours.
    let stranger = Ca::new().credentials("spiffe://lab/admin/root");
    let elsewhere = cluster.ca.credentials("spiffe://elsewhere/admin/root");
    for credentials in [stranger, elsewhere] {
        let address = cluster.controller.address;
        let Ok(mut client) = Client::try_connect(address, credentials).await else {
            continue;
        };
        let asked = tokio::spawn(async move { client.get("/healthz").await.status });
        assert!(asked.await.is_err(), "the connection is closed unanswered");
    }
    cluster.controller.stop().await;
}
