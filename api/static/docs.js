// The OpenAPI document of this server, rendered. The validator is a foreign site and not used.
"use strict";

// Swagger UI has dark colours behind a class.
const night = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark-mode", night.matches);
night.addEventListener("change", dress);
dress();

const key = sessionStorage.getItem("embedq-key");

window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#document",
  deepLinking: true,
  validatorUrl: null,
  // The key entered on the page; the document itself is public.
  requestInterceptor: (request) => {
    if (key && !request.headers.Authorization) request.headers.Authorization = `Bearer ${key}`;
    return request;
  },
});
