// The OpenAPI document of this server, rendered. The validator is somebody else's site: not asked.
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
  // The key that the page was given; the document itself is everybody's.
  requestInterceptor: (request) => {
    if (key && !request.headers.Authorization) request.headers.Authorization = `Bearer ${key}`;
    return request;
  },
});
