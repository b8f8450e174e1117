"""Real services, each configured, started and stopped inside one namespace."""

from netlab.servers.envoy import Envoy
from netlab.servers.fd_service import FdService
from netlab.servers.gunicorn import Gunicorn
from netlab.servers.haproxy import HAProxy
from netlab.servers.http_server import HttpServer
from netlab.servers.nginx import Nginx
from netlab.servers.redis import Redis
from netlab.servers.service import Service

__all__ = ["Envoy", "FdService", "Gunicorn", "HAProxy", "HttpServer", "Nginx", "Redis", "Service"]
