//! The models that Codex offers.

use serde::Deserialize;
use serde_json::json;

use crate::app_server::client::Client;
use crate::app_server::peer::RequestError;
use crate::pb::Model;

/// Most parts that the list may come in: one that never ends is cut.
const MOST_PARTS: usize = 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CodexModel {
    model: String,
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    is_default: bool,
    #[serde(default)]
    hidden: bool,
    #[serde(default)]
    supported_reasoning_efforts: Vec<Effort>,
    #[serde(default)]
    default_reasoning_effort: Option<String>,
    #[serde(default)]
    input_modalities: Vec<String>,
    #[serde(default)]
    service_tiers: Vec<ServiceTier>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Effort {
    reasoning_effort: String,
}

#[derive(Deserialize)]
struct ServiceTier {
    id: String,
}

impl From<CodexModel> for Model {
    fn from(model: CodexModel) -> Model {
        let CodexModel {
            model,
            display_name,
            description,
            is_default,
            hidden,
            supported_reasoning_efforts,
            default_reasoning_effort,
            input_modalities,
            service_tiers,
        } = model;
        let efforts = supported_reasoning_efforts.into_iter();
        Model {
            model,
            display_name,
            description,
            is_default,
            hidden,
            reasoning_efforts: efforts.map(|effort| effort.reasoning_effort).collect(),
            default_reasoning_effort: default_reasoning_effort.unwrap_or_default(),
            input_modalities,
            service_tiers: service_tiers.into_iter().map(|tier| tier.id).collect(),
        }
    }
}

impl Client {
    /// All models, those that are not shown to people included.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn models(&self) -> Result<Vec<Model>, RequestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Part {
            data: Vec<CodexModel>,
            #[serde(default)]
            next_cursor: Option<String>,
        }
        let mut models = Vec::new();
        let mut from = None;
        for _ in 0..MOST_PARTS {
            let params = json!({ "includeHidden": true, "cursor": from });
            let Part { data, next_cursor } = self.ask("model/list", &params).await?;
            models.extend(data.into_iter().map(Model::from));
            from = next_cursor;
            if from.is_none() {
                break;
            }
        }
        Ok(models)
    }
}
