// Shows openapi.json by Swagger UI, without its validator, which would ask another host.

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

SwaggerUIBundle({ dom_id: "#docs", url: "openapi.json", validatorUrl: null, deepLinking: true, syntaxHighlight: false });
